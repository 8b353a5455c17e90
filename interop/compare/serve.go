//go:build linux

package main

import (
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"slices"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/interop/stock"
	"culvert.dev/culvert/traversal/relay/relayserver"
)

// serve runs Culvert's relay on a loopback port, as the derper command runs the stock one: net/http with TLS, the
// metacert, and profiles under /debug/pprof/. It writes its address and its certificate to stdout and ends when stdin does.
func serve() error {
	key, err := wgkey.NewPrivate()
	if err != nil {
		return err
	}
	relay, err := relayserver.New(relayserver.Config{
		Key:           key,
		Admit:         func(wgkey.Public, netip.Addr) error { return nil }, // derper admits everyone too
		MaxPerAddress: 1 << 20,
		ConnectRate:   1e6,
		ConnectBurst:  1 << 20,
	})
	if err != nil {
		return err
	}
	defer relay.Close()

	mux := http.NewServeMux()
	mux.Handle("/", relay.Handler())
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	cert, _, err := stock.SelfSigned()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := relay.HTTPServer()
	srv.Handler = mux
	srv.ErrorLog = log.New(io.Discard, "", 0)
	srv.WriteTimeout = 0 // a profile takes its time
	config := &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			c := cert
			c.Certificate = append(slices.Clip(c.Certificate), relay.MetaCertificate())
			return &c, nil
		},
	}
	defer srv.Close()
	go srv.Serve(tls.NewListener(relay.Listener(l), config))
	fmt.Println(l.Addr())
	pem.Encode(os.Stdout, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Leaf.Raw})
	os.Stdout.Close()
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
