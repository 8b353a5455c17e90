package stock

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"sync"

	"tailscale.com/derp"
	"tailscale.com/derp/derpserver"
	"tailscale.com/types/key"

	"culvert.dev/culvert/internal/wgkey"
)

// Server is derpserver behind net/http, put together as the derper command does it, within this process. Unlike the
// command it can say how its clients connected.
type Server struct {
	URL   string
	Roots *x509.CertPool // nil without TLS
	Leaf  *x509.Certificate
	Key   wgkey.Public
	DERP  *derpserver.Server

	http *http.Server
	done chan struct{} // closed when http has ended

	mu     sync.Mutex // guards the following
	starts []Mode
}

// NewServer starts a server on a loopback port, with TLS (and the metacert) or without.
func NewServer(withTLS bool) (*Server, error) {
	private := key.NewNode()
	s := &Server{
		DERP: derpserver.New(private, func(string, ...any) {}),
		Key:  Public(private.Public()),
		done: make(chan struct{}),
	}
	mux := http.NewServeMux()
	mux.Handle("/derp", s.note(derpserver.AddWebSocketSupport(s.DERP, derpserver.Handler(s.DERP))))
	mux.HandleFunc("/derp/probe", derpserver.ProbeHandler)
	mux.HandleFunc("/derp/latency-check", derpserver.ProbeHandler)
	mux.HandleFunc("/generate_204", derpserver.ServeNoContent)
	s.http = &http.Server{Handler: mux, ErrorLog: log.New(io.Discard, "", 0)}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.URL = "http://" + l.Addr().String()
	if withTLS {
		if err := s.useTLS(); err != nil {
			l.Close()
			return nil, err
		}
		s.URL = "https://" + l.Addr().String()
	}
	go func() {
		defer close(s.done)
		if withTLS {
			s.http.ServeTLS(l, "", "")
			return
		}
		s.http.Serve(l)
	}()
	return s, nil
}

func (s *Server) useTLS() error {
	cert, roots, err := SelfSigned()
	if err != nil {
		return err
	}
	s.Roots, s.Leaf = roots, cert.Leaf
	s.http.TLSConfig = &tls.Config{
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			c := cert // the metacert is appended to what is returned
			c.Certificate = slices.Clip(c.Certificate)
			return &c, nil
		},
	}
	s.DERP.ModifyTLSConfigToAddMetaCert(s.http.TLSConfig)
	return nil
}

// note remembers how each client asked for DERP.
func (s *Server) note(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mode := Upgrade
		switch {
		case r.Header.Get("Upgrade") == "websocket":
			mode = WebSocket
		case r.Header.Get(derp.FastStartHeader) == "1":
			mode = FastStart
		}
		s.mu.Lock()
		s.starts = append(s.starts, mode)
		s.mu.Unlock()
		next.ServeHTTP(w, r)
	})
}

// Starts returns how the clients so far asked for DERP, in order.
func (s *Server) Starts() []Mode {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.starts)
}

// Close ends the server and all of its connections.
func (s *Server) Close() {
	s.DERP.Close()
	s.http.Close()
	<-s.done
}
