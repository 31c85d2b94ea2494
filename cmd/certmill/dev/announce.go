package dev

import (
	"path/filepath"
	"strings"

	"github.com/certmill/certmill/cmd/certmill/client"
)

// announce says where everything is and what to try, each line ready to be pasted.
func (d *dev) announce() {
	reach := d.reach()
	var operators strings.Builder
	for _, c := range d.roles {
		operators.WriteString("  " + pad(c.name, 14) + "http://" + c.operator + "/metrics · pid " + d.path("run", c.name+".pid") + "\n")
	}
	d.say(`
certmill is up. All data lies in %s; Ctrl-C stops everything, and the next start goes on with it.

  REST          https://%s   (its description: /openapi.yaml)
  gRPC          %s
  OCSP          http://%s/
%s
Metrics, health and profiles of each role:
%s
Try next, in another terminal:
  %s issue --profile server --dns web.test%s
  %s inspect web.test.pem%s
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout my.key -subj / -addext subjectAltName=DNS:my.test -out my.csr
  curl --cacert %s --cert %s --key %s --data-binary @my.csr 'https://localhost:%s/v1/certificates?profile=server'
  %s revoke web.test.pem --reason superseded%s
  %s status%s
  %s console%s            # a link to the web page for operators
  kill -9 $(cat %s)     # a signer dies; nothing is lost, and it comes back
  %s loadtest --help`,
		d.Dir, d.ports.gateway, d.ports.grpc, d.ports.ocsp, d.describeServers(), operators.String(),
		d.shown, reach, d.shown, reach, d.path("root.pem"), d.path("operator.pem"), d.path("operator.key"), port(d.ports.gateway),
		d.shown, reach, d.shown, reach, d.shown, reach, d.path("run", "signer-1.pid"), d.shown)
}

// reach returns the flag by which a command of a person here reaches this stack; "" where
// it does so without.
func (d *dev) reach() string {
	ours := d.path("cli.yaml")
	found, err := filepath.Abs(client.Find(""))
	if own, oerr := filepath.Abs(ours); err == nil && oerr == nil && found == own {
		return ""
	}
	return " --context " + ours
}

func pad(s string, n int) string { return s + strings.Repeat(" ", max(1, n-len(s))) }

func port(address string) string { return address[strings.LastIndexByte(address, ':')+1:] }
