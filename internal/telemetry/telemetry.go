// Package telemetry gives every role its logger, its metrics registry, its tracer
// and the operator's listener (/metrics, /healthz, /readyz, /debug/pprof).
package telemetry
