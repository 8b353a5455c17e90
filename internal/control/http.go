package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
)

// HTTPServer answers monitoring on a TCP address, with these pages and no others:
//
//	GET /metrics   OpenMetrics
//	GET /healthz   200 while the program runs
//	GET /readyz    200 when the node is ready, else 503 and the reason
//
// Nothing can be changed through it.
type HTTPServer struct {
	source Source
	addr   netip.AddrPort
	http   http.Server
	done   chan struct{}
}

const (
	httpWriteTime = 30 * time.Second
	maxScrapers   = 64 // connections at once
)

// ListenHTTP opens addr and starts to answer there, until Shutdown. The error says what to do.
func ListenHTTP(addr netip.AddrPort, source Source, log *slog.Logger) (*HTTPServer, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	l, err := net.Listen("tcp", addr.String())
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen for HTTP on %s: another program uses this address and port; choose another port", addr)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("listen for HTTP on %s: this host has no such address", addr)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("listen for HTTP on %s: ports below 1024 need a privilege; choose a higher one", addr)
	case err != nil:
		return nil, fmt.Errorf("listen for HTTP on %s: %w", addr, err)
	}
	s := &HTTPServer{source: source, addr: l.Addr().(*net.TCPAddr).AddrPort(), done: make(chan struct{})}
	s.http = http.Server{
		Handler:           s,
		ReadHeaderTimeout: readTime,
		ReadTimeout:       readTime,
		WriteTimeout:      httpWriteTime,
		IdleTimeout:       2 * time.Minute, // scrapers keep their connection
		MaxHeaderBytes:    maxHeaderLen,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(netutil.LimitListener(l, maxScrapers)); !errors.Is(err, http.ErrServerClosed) {
			log.Error("HTTP is no longer served", "addr", s.addr, "err", err)
		}
	}()
	return s, nil
}

// Addr is where it listens.
func (s *HTTPServer) Addr() netip.AddrPort { return s.addr }

// Shutdown closes the listener at once, lets requests end until ctx does, and returns when nothing is left running.
func (s *HTTPServer) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		s.http.Close()
	}
	<-s.done
	return err
}

// ServeHTTP implements http.Handler.
func (s *HTTPServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		writeText(w, http.StatusMethodNotAllowed, "use GET")
		return
	}
	switch r.URL.Path {
	case "/metrics":
		if source, ok := s.source.(MetricsSource); ok {
			serveMetrics(w, source)
			return
		}
	case "/healthz":
		writeText(w, http.StatusOK, "ok")
		return
	case "/readyz":
		if err := s.source.Health(); err != nil {
			writeText(w, http.StatusServiceUnavailable, err.Error())
			return
		}
		writeText(w, http.StatusOK, "ready")
		return
	}
	writeText(w, http.StatusNotFound, "there are /metrics, /healthz and /readyz")
}

func writeText(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	io.WriteString(w, text+"\n") // an error means that the client has gone
}
