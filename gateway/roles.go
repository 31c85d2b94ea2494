package gateway

import (
	"path"
	"slices"

	"github.com/certmill/certmill/internal/problem"
)

// Role is what an operator may do beyond a plain caller, who may issue and look
// after the certificates that are its own.
type Role string

// The roles.
const (
	Viewer       Role = "viewer"   // find every certificate
	OperatorRole Role = "operator" // also revoke every certificate, make and end enrollment tokens
	Auditor      Role = "auditor"  // read the audit trail
	Admin        Role = "admin"    // all of it
)

func (r Role) valid() bool { return r == Viewer || r == OperatorRole || r == Auditor || r == Admin }

// rolesOf returns the roles of a caller id by the configuration, sorted and unique.
func rolesOf(operators []Operator, id string) []string {
	var roles []string
	for _, o := range operators {
		// Validate has refused malformed patterns; an exact id may hold pattern characters.
		if ok, err := path.Match(o.Match, id); o.Match == id || (err == nil && ok) {
			roles = append(roles, o.Roles...)
		}
	}
	slices.Sort(roles)
	return slices.Compact(roles)
}

// has reports whether the caller has one of the roles, or is admin.
func (c *Caller) has(roles ...Role) bool {
	for _, r := range c.Roles {
		if Role(r) == Admin || slices.Contains(roles, Role(r)) {
			return true
		}
	}
	return false
}

// needs refuses a caller who has none of the roles.
func (c *Caller) needs(roles ...Role) error {
	if c.has(roles...) {
		return nil
	}
	return problem.Forbidden("caller", "role", "this needs the role %s; ask who configures operators in the gateway", roles[0])
}
