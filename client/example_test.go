package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/certmill/certmill/client"
)

// The examples run against a stand-in for a gateway; see export_test.go.

// A server and a client that know each other by their SPIFFE IDs. Both certificates are
// renewed while the program runs, and a change of the CA's root needs no restart.
func ExampleOpen() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	gateway := client.StartExampleCA()
	defer gateway.Stop()

	config := client.Config{Gateway: gateway.Address, CAFile: gateway.CAFile, TokenFile: gateway.TokenFile}
	web, err := client.Open(ctx, config, client.Request{Profile: "workload", URIs: []string{"spiffe://example.test/web"}})
	if err != nil {
		log.Fatal(err)
	}
	defer web.Close()
	shop, err := client.Open(ctx, config, client.Request{Profile: "workload", URIs: []string{"spiffe://example.test/shop"}})
	if err != nil {
		log.Fatal(err)
	}
	defer shop.Close()

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{
		TLSConfig: web.ServerTLS(client.AllowURI("spiffe://example.test/shop")),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "hello %s", r.TLS.PeerCertificates[0].URIs[0])
		}),
	}
	go server.ServeTLS(listener, "", "")
	defer server.Close()

	transport := &http.Transport{TLSClientConfig: shop.ClientTLS(client.AllowURI("spiffe://example.test/web"))}
	defer transport.CloseIdleConnections()
	answer, err := (&http.Client{Transport: transport}).Get("https://" + listener.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(text))
	// Output: hello spiffe://example.test/shop
}

// One certificate. Whatever is lost on the way, the request is repeated with the same
// idempotency key, so there is one.
func ExampleClient_Issue() {
	gateway := client.StartExampleCA()
	defer gateway.Stop()

	c, err := client.New(client.Config{Gateway: gateway.Address, CAFile: gateway.CAFile, TokenFile: gateway.TokenFile})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	cert, err := c.Issue(context.Background(), client.Request{Profile: "server", DNSNames: []string{"web.example.test"}})
	if err != nil {
		var refused *client.Error
		if errors.As(err, &refused) {
			log.Fatalf("%s (%s): %s", refused.Field, refused.Rule, refused.Detail)
		}
		log.Fatal(err)
	}
	fmt.Println(cert.Leaf().DNSNames, cert.RenewAt.After(time.Now()))
	// Output: [web.example.test] true
}

// What depends on the certificate or the roots elsewhere, in files for example, follows
// them by Changed.
func ExampleIdentity_Changed() {
	gateway := client.StartExampleCA()
	defer gateway.Stop()
	gateway.Lifetime(2 * time.Second)

	id, err := client.Open(context.Background(), client.Config{Gateway: gateway.Address, CAFile: gateway.CAFile, TokenFile: gateway.TokenFile}, client.Request{})
	if err != nil {
		log.Fatal(err)
	}
	defer id.Close()
	for range 2 {
		changed := id.Changed() // before what is in use is read, so that no change is missed
		_, _ = id.Certificate().PEM, id.Bundle().PEM()
		<-changed
		fmt.Println("write the files again")
	}
	// Output:
	// write the files again
	// write the files again
}
