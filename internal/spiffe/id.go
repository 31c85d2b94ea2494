// Package spiffe reads and judges SPIFFE IDs by the letter of the SPIFFE-ID standard.
package spiffe

import (
	"fmt"
	"strings"

	"github.com/certmill/certmill/internal/problem"
)

// The bounds of SPIFFE-ID sections 2.1 and 2.4, in bytes.
const (
	MaxID          = 2048
	MaxTrustDomain = 255
)

const scheme = "spiffe://"

// ID is a SPIFFE ID of a workload, whose path is not empty.
type ID struct {
	TrustDomain string
	// Path begins with "/".
	Path string
}

// String returns the URI.
func (id ID) String() string { return scheme + id.TrustDomain + id.Path }

// Parse reads the SPIFFE ID of a workload. What SPIFFE-ID section 2 does not allow is a
// *problem.Error of kind Invalid: no user, port, query or fragment; a trust domain of
// a–z, 0–9, ".", "-" and "_"; path segments of letters, digits, ".", "-" and "_" that are
// neither empty nor dots. Nothing is normalised: what is not canonical is refused.
func Parse(s string) (ID, error) {
	bad := func(format string, args ...any) (ID, error) {
		return ID{}, problem.Rejected("spiffe_id", "spiffe_id", "%.253q is not the SPIFFE ID of a workload: %s", s, fmt.Sprintf(format, args...))
	}
	if len(s) > MaxID {
		return bad("it has more than %d bytes", MaxID)
	}
	rest, ok := strings.CutPrefix(s, scheme)
	if !ok {
		return bad("it does not begin with spiffe://")
	}
	domain, path, ok := strings.Cut(rest, "/")
	if err := CheckTrustDomain(domain); err != nil {
		return bad("%s", problem.From(err).Detail)
	}
	if !ok || path == "" {
		return bad("it has no path")
	}
	for segment := range strings.SplitSeq(path, "/") {
		switch {
		case segment == "":
			return bad("its path has an empty segment")
		case segment == "." || segment == "..":
			return bad("its path has a dot segment")
		case strings.ContainsFunc(segment, func(r rune) bool { return !lower(r) && (r < 'A' || r > 'Z') }):
			return bad("its path holds other characters than letters, digits, \".\", \"-\" and \"_\"")
		}
	}
	return ID{TrustDomain: domain, Path: "/" + path}, nil
}

// Workload returns the ID that Istio gives to a service account. The names of Kubernetes
// objects hold nothing that is not allowed in a path; others are refused.
func Workload(trustDomain, namespace, account string) (ID, error) {
	if strings.Contains(namespace+account, "/") {
		return ID{}, problem.Rejected("spiffe_id", "spiffe_id", "a namespace or a service account holds a \"/\"")
	}
	return Parse(scheme + trustDomain + "/ns/" + namespace + "/sa/" + account)
}

// ServiceAccount returns namespace and name where the ID is of the form that Istio gives
// to service accounts, /ns/<namespace>/sa/<name>.
func (id ID) ServiceAccount() (namespace, name string, ok bool) {
	parts := strings.Split(id.Path, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return "", "", false
	}
	return parts[2], parts[4], true
}

// CheckTrustDomain returns a *problem.Error of kind Invalid where s is not the name of a
// trust domain (SPIFFE-ID section 2.1).
func CheckTrustDomain(s string) error {
	if s == "" || len(s) > MaxTrustDomain || strings.ContainsFunc(s, func(r rune) bool { return !lower(r) }) {
		return problem.Rejected("trust_domain", "trust_domain", "a trust domain is 1 to %d of a–z, 0–9, \".\", \"-\" and \"_\"", MaxTrustDomain)
	}
	return nil
}

func lower(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_'
}
