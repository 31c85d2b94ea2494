package profile

import (
	"fmt"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/ext"

	"github.com/certmill/certmill/internal/csr"
	"github.com/certmill/certmill/internal/problem"
)

// ruleCost bounds one evaluation, in CEL's units: about a millisecond.
const ruleCost = 100_000

// celEnvironment is made once: it is the dearest part of compiling a rule.
var celEnvironment = sync.OnceValues(func() (*cel.Env, error) {
	list := cel.ListType(cel.StringType)
	options := []cel.EnvOption{
		ext.Strings(),
		cel.Variable("caller.roles", list),
		cel.Variable("request.dns_names", list), cel.Variable("request.ip_addresses", list),
		cel.Variable("request.uris", list), cel.Variable("request.emails", list),
		cel.Variable("request.lifetime", cel.DurationType),
	}
	for _, name := range []string{
		"caller.id", "caller.kind", "caller.identity", "request.common_name", "request.key_type",
		"request.owner", "request.service", "request.environment",
	} {
		options = append(options, cel.Variable(name, cel.StringType))
	}
	return cel.NewEnv(options...)
})

func (p *Profile) compileRules(f *faults) {
	seen := make(map[string]bool, len(p.Rules))
	for i := range p.Rules {
		r := &p.Rules[i]
		key := fmt.Sprintf("rules[%d]", i)
		if r.Name == "" || r.Message == "" {
			f.add(key, "a rule needs a name and a message")
		}
		if seen[r.Name] {
			f.add(key+".name", "%q stands there twice", r.Name)
		}
		seen[r.Name] = true
		compiled, err := compileRule(r.Expr)
		f.addErr(key+".expr", err)
		p.rules = append(p.rules, program{Rule: r, cel: compiled})
	}
}

func compileRule(expr string) (cel.Program, error) {
	env, err := celEnvironment()
	if err != nil {
		return nil, err
	}
	ast, issues := env.Compile(expr)
	if issues.Err() != nil {
		return nil, issues.Err()
	}
	if !ast.OutputType().IsExactType(cel.BoolType) {
		return nil, fmt.Errorf("the expression is a %s, not a bool", ast.OutputType())
	}
	return env.Program(ast, cel.CostLimit(ruleCost), cel.EvalOptions(cel.OptOptimize))
}

// checkRules refuses where a rule is false or cannot be evaluated.
func (p *Profile) checkRules(r *Request) error {
	if len(p.rules) == 0 {
		return nil
	}
	for i := range p.rules {
		rule := &p.rules[i]
		out, _, err := rule.cel.Eval(activation{r})
		if err != nil {
			e := problem.Forbidden("request", rule.Name, "the rule %s of profile %s cannot be evaluated for this request: %s", rule.Name, p.Name, rule.Message)
			e.Cause = err
			return e
		}
		if out.Value() != true {
			return problem.Forbidden("request", rule.Name, "%s", rule.Message)
		}
	}
	return nil
}

// activation gives CEL the variables without a map for each request.
type activation struct{ r *Request }

// Parent implements cel.Activation.
func (activation) Parent() cel.Activation { return nil }

// ResolveName implements cel.Activation.
func (a activation) ResolveName(name string) (any, bool) {
	r := a.r
	switch name {
	case "caller.id":
		return r.Caller.ID, true
	case "caller.kind":
		return r.Caller.Kind, true
	case "caller.identity":
		return r.Caller.Identity, true
	case "caller.roles":
		return r.Caller.Roles, true
	case "request.common_name":
		return r.CommonName, true
	case "request.key_type":
		return string(csr.KeyTypeOf(r.PublicKey)), true
	case "request.owner":
		return r.Owner, true
	case "request.service":
		return r.Service, true
	case "request.environment":
		return r.Environment, true
	case "request.dns_names":
		return r.DNSNames, true
	case "request.ip_addresses":
		list := make([]string, len(r.IPAddresses))
		for i, ip := range r.IPAddresses {
			list[i] = ip.String()
		}
		return list, true
	case "request.uris":
		return r.URIs, true
	case "request.emails":
		return r.Emails, true
	case "request.lifetime":
		return r.Lifetime, true
	}
	return nil, false
}
