// Command mesh restarts a mesh of 20,000 agents on a stack of its own and says whether
// everybody was served, nobody twice, and whether the herd dissolved: `make bench-mesh`.
package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/certmill/certmill/loadtest/bench/stack"
	"github.com/certmill/certmill/loadtest/mesh"
)

//go:embed profile.yaml
var profile []byte

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench-mesh:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	bin := flag.String("bin", "bin/certmill", "the program")
	agents := flag.Int("agents", 20_000, "how many agents")
	target := flag.String("target", "istio", "istio or grpc")
	duration := flag.Duration("d", 130*time.Second, "how long they renew")
	html := flag.String("html", "", "file for the report with plots")
	flag.Parse()

	dir, remove, err := stack.TempDir()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	data := filepath.Join(dir, "stack")
	keyFile, jwksFile := filepath.Join(dir, "token.key"), filepath.Join(dir, "jwks.json")
	key, jwks, err := mesh.NewTokenKey()
	if err != nil {
		return err
	}
	if err := errors.Join(
		os.WriteFile(keyFile, key, 0o600), os.WriteFile(jwksFile, jwks, 0o644),
		os.MkdirAll(filepath.Join(data, "profiles"), 0o755), os.WriteFile(filepath.Join(data, "profiles", "storm.yaml"), profile, 0o644),
	); err != nil {
		return err
	}
	env := []string{
		fmt.Sprintf(`CERTMILL_GATEWAY_AUTH_JWT=[{issuer: "https://mesh.certmill.test", audiences: [certmill], jwks_file: %q, identity: "spiffe://certmill.test/ns/mesh/sa/{sub}"}]`, jwksFile),
		"CERTMILL_GATEWAY_ISTIO_PROFILE=storm",
	}
	s, err := stack.Start(ctx, *bin, data, env)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	args := []string{"loadtest", "mesh", "--dev", data, "--agents", fmt.Sprint(*agents), "--target", *target, "--profile", "storm", "--token-key", keyFile, "-d", duration.String()}
	if *html != "" {
		args = append(args, "--html", *html)
	}
	cmd := s.Command(args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}
