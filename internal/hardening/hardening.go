// Package hardening keeps what a process holds in memory, PINs, keys and tokens, from
// getting onto a disk or into another process of the same user.
package hardening
