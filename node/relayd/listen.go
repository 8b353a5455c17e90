package relayd

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"culvert.dev/culvert/internal/config"
)

const (
	defaultPort  = 443
	fallbackPort = 8443 // for users who may not bind the other
)

// requestTime bounds a request that does not become a connection of the relay, from its header to its answer.
const requestTime = 15 * time.Second

// listenRelay opens the relay's listeners. Where none are configured it takes the first port, or the second one if this user may
// not have that; fellBack tells so.
func listenRelay(addrs []config.ListenAddr) (list []net.Listener, fellBack bool, err error) {
	if len(addrs) > 0 {
		list, err = listenAll(addrs, relayListen)
		return list, false, err
	}
	list, err = listenAll([]config.ListenAddr{{Port: defaultPort}}, relayListen)
	if errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) {
		list, err = listenAll([]config.ListenAddr{{Port: fallbackPort}}, relayListen)
		return list, true, err
	}
	return list, false, err
}

// relayListen is where the relay's own addresses are set.
const relayListen = "Listen in [Relay], or --listen"

func listenAll(addrs []config.ListenAddr, key string) ([]net.Listener, error) {
	var list []net.Listener
	for _, a := range addrs {
		// SO_REUSEADDR, which package net sets, is enough beside a relay that drains: it has closed its listeners, and its open
		// connections do not count. SO_REUSEPORT would also let two relays share a port by mistake, each getting some of the clients.
		l, err := net.Listen("tcp", a.String())
		if err != nil {
			closeAll(list)
			return nil, explainListen("listen on "+a.String(), key, err)
		}
		list = append(list, l)
	}
	return list, nil
}

func closeAll(list []net.Listener) {
	for _, l := range list {
		l.Close()
	}
}

// explainListen adds what to do; key is where the address is set.
func explainListen(what, key string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		hint = ": another program uses this address and port; end it, or set another one by " + key
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		hint = ": this host has no such address; set another one by " + key
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		hint = ": ports below net.ipv4.ip_unprivileged_port_start need a privilege; lower that by sysctl, or set a higher port by " + key
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
	return &listenError{what + hint, err}
}

// listenError shows what to do in place of the system's own words.
type listenError struct {
	text  string
	cause error
}

func (e *listenError) Error() string { return e.text }
func (e *listenError) Unwrap() error { return e.cause }

func addressOf(l net.Listener) netip.AddrPort { return l.Addr().(*net.TCPAddr).AddrPort() }

// plainHandler serves ListenHTTP: whatever the certificate's authority asks for goes before it, and little else is here.
func plainHandler(relay http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/generate_204" {
			relay.ServeHTTP(w, r)
			return
		}
		http.Error(w, "the relay is served by HTTPS", http.StatusNotFound)
	})
}
