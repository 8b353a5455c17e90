// Package control is how a command talks to a running node: HTTP with JSON over a unix socket that only the node's own
// user and root can use.
//
//	GET  /v1/status    the node's status document
//	GET  /v1/health    200 {"ready":true}, or 503 {"ready":false,"reason":"…"}
//	GET  /v1/version   {"version":"…"}
//	GET  /v1/runtime   goroutines, descriptors and memory, for tests and curious operators
//	POST /v1/reload    200 {} once the configuration is applied, or 422 {"error":"…"} with nothing changed
//	GET  /v1/conntrack         flows that the query chooses, one JSON document a line; 400 {"error":"…"} for a bad query
//	GET  /v1/conntrack/count   {"flows":N}
//	GET  /v1/conntrack/events  one JSON document a line for each change of a flow, until either side goes
//	POST /v1/conntrack/flush   {"flows":N}, how many were ended
//	GET  /v1/explain           what would become of the flow in the query; 400 {"error":"…"} for a bad question
//	GET  /v1/ping              echo requests to a peer: one JSON document a line for each answer, loss and change of path
//	POST /v1/bench             measures throughput in the mesh as the order in the body says: one JSON document a line for each event
//	POST /v1/bench/stop        has the run of that number end with what it has so far
//	GET  /metrics              OpenMetrics text
//
// It knows nothing of nodes: what it serves comes from a Source. All types are safe for concurrent use.
//
//	l, err := control.Listen(path)
//	if err != nil {
//		return err
//	}
//	s := control.Serve(l, node, log)
//	defer s.Shutdown(ctx)
package control

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Source is what a node tells and does.
type Source interface {
	Status() any     // a value that encoding/json can write
	Health() error   // nil when the node is ready, else the reason why not
	Reload() error   // applies the configuration anew; on an error nothing has changed
	Version() string // of the program
}

const (
	readTime     = 5 * time.Second
	writeTime    = time.Minute // a reload may take a while
	idleTime     = 30 * time.Second
	maxHeaderLen = 4 << 10
)

// Server answers on a control socket until Shutdown.
type Server struct {
	source Source
	http   http.Server
	done   chan struct{}

	reload sync.Mutex // held during a reload: one at a time
}

// Serve starts to answer connections from l, which it owns, and returns at once.
func Serve(l net.Listener, source Source, log *slog.Logger) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Server{source: source, done: make(chan struct{})}
	s.http = http.Server{
		Handler:           s,
		ReadHeaderTimeout: readTime,
		ReadTimeout:       readTime,
		WriteTimeout:      writeTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeaderLen,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	requests, stop := context.WithCancel(context.Background())
	s.http.BaseContext = func(net.Listener) context.Context { return requests }
	s.http.RegisterOnShutdown(stop) // streams would go on
	go func() {
		defer close(s.done)
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("control socket is no longer served", "err", err)
		}
	}()
	return s
}

// Shutdown closes the socket at once, lets requests end until ctx does, and returns when nothing is left running.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		s.http.Close()
	}
	<-s.done
	return err
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	method, serve := http.MethodGet, http.HandlerFunc(nil)
	switch r.URL.Path {
	case "/v1/status":
		serve = s.serveStatus
	case "/v1/health":
		serve = s.serveHealth
	case "/v1/version":
		serve = s.serveVersion
	case "/v1/runtime":
		serve = s.serveRuntime
	case "/v1/reload":
		method, serve = http.MethodPost, s.serveReload
	case "/v1/conntrack":
		serve = s.withFlows(s.serveFlows)
	case "/v1/conntrack/count":
		serve = s.withFlows(s.serveFlowCount)
	case "/v1/conntrack/events":
		serve = s.withFlows(s.serveFlowEvents)
	case "/v1/conntrack/flush":
		method, serve = http.MethodPost, s.withFlows(s.serveFlowFlush)
	case "/v1/explain":
		serve = s.serveExplain
	case "/v1/ping":
		serve = s.withPinger(s.servePing)
	case "/v1/bench":
		method, serve = http.MethodPost, s.withBencher(s.serveBench)
	case "/v1/bench/stop":
		method, serve = http.MethodPost, s.withBencher(s.serveBenchStop)
	case "/metrics":
		if source, ok := s.source.(MetricsSource); ok {
			serve = func(w http.ResponseWriter, _ *http.Request) { serveMetrics(w, source) }
		}
	}
	if serve == nil {
		writeJSON(w, http.StatusNotFound, failure{"there is no " + r.URL.Path})
		return
	}
	if r.Method != method && !(r.Method == http.MethodHead && method == http.MethodGet) {
		w.Header().Set("Allow", method)
		writeJSON(w, http.StatusMethodNotAllowed, failure{"use " + method})
		return
	}
	serve(w, r)
}

type (
	failure struct {
		Error string `json:"error"`
	}
	health struct {
		Ready  bool   `json:"ready"`
		Reason string `json:"reason,omitempty"`
	}
	version struct {
		Version string `json:"version"`
	}
)

func (s *Server) serveStatus(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, s.source.Status())
}

func (s *Server) serveHealth(w http.ResponseWriter, _ *http.Request) {
	if err := s.source.Health(); err != nil {
		writeJSON(w, http.StatusServiceUnavailable, health{Reason: err.Error()})
		return
	}
	writeJSON(w, http.StatusOK, health{Ready: true})
}

func (s *Server) serveVersion(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, version{s.source.Version()})
}

func (s *Server) serveRuntime(w http.ResponseWriter, _ *http.Request) {
	usage, err := ReadRuntime()
	if err != nil {
		writeJSON(w, http.StatusInternalServerError, failure{err.Error()})
		return
	}
	writeJSON(w, http.StatusOK, usage)
}

func (s *Server) serveReload(w http.ResponseWriter, _ *http.Request) {
	s.reload.Lock()
	defer s.reload.Unlock()
	if err := s.source.Reload(); err != nil {
		writeJSON(w, http.StatusUnprocessableEntity, failure{err.Error()})
		return
	}
	writeJSON(w, http.StatusOK, struct{}{})
}

// writeJSON encodes first, so that a value that cannot be encoded becomes an error and not half a document.
func writeJSON(w http.ResponseWriter, code int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		code, b = http.StatusInternalServerError, []byte(`{"error":"the answer cannot be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	w.Write(append(b, '\n')) // an error means that the client has gone
}
