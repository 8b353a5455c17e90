package relayserver

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"

	"culvert.dev/culvert/traversal/relay/derp"
)

// Bounds of HTTP requests.
const (
	maxHeaderBytes = 8 << 10
	idleTimeout    = 30 * time.Second // of HTTP connections that have not become DERP
	maxChallenge   = 64               // bytes
)

// HTTPServer returns a server for the relay's Handler, bounded as is fit for the internet: HandshakeTimeout for a request and as much
// for its answer, 8 KiB for the header, and HTTP/1.1 only, since later versions cannot be upgraded. The caller sets TLS and
// listeners, and shuts it down.
func (s *Server) HTTPServer() *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler:           s.Handler(),
		Protocols:         &protocols,
		ReadHeaderTimeout: s.cfg.HandshakeTimeout,
		ReadTimeout:       s.cfg.HandshakeTimeout, // of a body that nobody asked for
		WriteTimeout:      s.cfg.HandshakeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

// Handler serves the relay (/derp, by upgrade to DERP or WebSocket), what clients measure its latency by (/derp/probe,
// /derp/latency-check), what they find captive portals by (/generate_204), and a line of text (/). It works over TLS and without,
// over HTTP/1.1.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serveHTTP) }

func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case derp.Path:
		s.serveUpgrade(w, r)
	case "/derp/probe", "/derp/latency-check":
		if allow(w, r) {
			w.Header().Set("Access-Control-Allow-Origin", "*")
		}
	case "/generate_204":
		if allow(w, r) {
			generate204(w, r)
		}
	case "/":
		if allow(w, r) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			io.WriteString(w, "This is a Culvert relay. It speaks DERP at /derp.\n")
		}
	default:
		http.NotFound(w, r)
	}
}

// allow refuses all methods but GET and HEAD.
func allow(w http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return true
	}
	w.Header().Set("Allow", "GET, HEAD")
	http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
	return false
}

// generate204 answers a client that wants to know whether what answers is us, by its challenge.
func generate204(w http.ResponseWriter, r *http.Request) {
	c := r.Header.Get("X-Tailscale-Challenge")
	ok := c != "" && len(c) <= maxChallenge && !strings.ContainsFunc(c, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("._:-", r))
	})
	if ok {
		w.Header().Set("X-Tailscale-Response", "response "+c)
	}
	w.WriteHeader(http.StatusNoContent)
}

// serveUpgrade turns a request into a DERP connection, which then is the relay's own: the HTTP server's goroutine and buffers are
// free again.
func (s *Server) serveUpgrade(w http.ResponseWriter, r *http.Request) {
	upgrade := strings.ToLower(r.Header.Get("Upgrade"))
	switch {
	case r.Method != http.MethodGet:
		allow(w, r)
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusUpgradeRequired)
		}
		return
	case upgrade != "derp" && upgrade != "websocket":
		w.Header().Set("Upgrade", derp.UpgradeProtocol)
		w.Header().Set("Connection", "Upgrade")
		http.Error(w, "DERP requires an upgrade of the connection", http.StatusUpgradeRequired)
		return
	case r.ProtoMajor != 1:
		http.Error(w, "DERP requires HTTP/1.1", http.StatusHTTPVersionNotSupported)
		return
	case r.ContentLength != 0:
		http.Error(w, "no body expected", http.StatusBadRequest)
		return
	}
	from := s.sourceOf(r)
	o, why := s.reserve(from)
	if why != 0 {
		s.refuseHTTP(w, why)
		return
	}
	if upgrade == "websocket" {
		s.upgradeWebSocket(w, r, o)
	} else {
		s.upgradeDERP(w, r, o)
	}
}

// refuseHTTP counts a connection that is turned away, and says how.
func (s *Server) refuseHTTP(w http.ResponseWriter, why refusal) {
	s.refused[why].Add(1)
	w.Header().Set("Connection", "close")
	switch why {
	case refusedDraining, refusedFull:
		w.Header().Set("Retry-After", strconv.Itoa(retryAfterSeconds))
		http.Error(w, "the relay takes no new clients now: "+why.String(), http.StatusServiceUnavailable)
	default:
		http.Error(w, "too many connections: "+why.String(), http.StatusTooManyRequests)
	}
}

const retryAfterSeconds = 5

func (s *Server) upgradeDERP(w http.ResponseWriter, r *http.Request, o *opening) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		o.release()
		http.Error(w, "this connection cannot be upgraded", http.StatusInternalServerError)
		return
	}
	o.transport = TransportDERP
	if r.Header.Get(derp.HeaderFastStart) == "1" {
		o.transport = TransportFastStart
	} else {
		o.greeting = append(o.greeting, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n"+
			derp.HeaderVersion+": "+strconv.Itoa(derp.Version)+"\r\n"+
			derp.HeaderKey+": "+s.public.Hex()+"\r\n\r\n"...)
	}
	o.ahead = readAhead(rw.Reader)
	o.take(conn)
	s.launch(o)
}

// readAhead returns a copy of what was read of the connection behind the request.
func readAhead(r *bufio.Reader) []byte {
	b, _ := r.Peek(r.Buffered())
	return slices.Clone(b)
}

func (s *Server) upgradeWebSocket(w http.ResponseWriter, r *http.Request, o *opening) {
	// There are no cookies, so that pages of any origin may connect: what counts is the key.
	h := &hijackNote{ResponseWriter: w}
	ws, err := websocket.Accept(h, r, &websocket.AcceptOptions{
		Subprotocols:       []string{derp.Subprotocol},
		InsecureSkipVerify: true,
		CompressionMode:    websocket.CompressionDisabled,
	})
	if err != nil { // Accept has answered
		o.release()
		s.refused[refusedHandshake].Add(1)
		return
	}
	if ws.Subprotocol() != derp.Subprotocol {
		s.refused[refusedHandshake].Add(1)
		ws.Close(websocket.StatusPolicyViolation, "subprotocol derp is required")
		o.release()
		return
	}
	o.transport = TransportWebSocket
	o.take(h.conn)
	o.conn = websocket.NetConn(context.Background(), ws, websocket.MessageBinary)
	s.launch(o)
}

// hijackNote keeps the connection that websocket takes over, which it does not show.
type hijackNote struct {
	http.ResponseWriter
	conn net.Conn
}

// Hijack implements http.Hijacker.
func (h *hijackNote) Hijack() (conn net.Conn, rw *bufio.ReadWriter, err error) {
	conn, rw, err = http.NewResponseController(h.ResponseWriter).Hijack()
	h.conn = conn
	return conn, rw, err
}

// sourceOf returns the client's address. Of what X-Forwarded-For says only that counts which a trusted proxy has appended.
func (s *Server) sourceOf(r *http.Request) netip.Addr {
	at, _ := netip.ParseAddrPort(r.RemoteAddr)
	from := at.Addr().Unmap().WithZone("")
	if !s.trusted(from) {
		return from
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		a, ok := parseHop(strings.TrimSpace(hop))
		if !ok {
			break
		}
		from = a
		if !s.trusted(a) {
			break
		}
	}
	return from
}

// parseHop reads an address with or without port, as proxies write them.
func parseHop(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(strings.Trim(s, "[]"))
	if err != nil {
		at, err := netip.ParseAddrPort(s)
		if err != nil {
			return netip.Addr{}, false
		}
		a = at.Addr()
	}
	return a.Unmap().WithZone(""), true
}

func (s *Server) trusted(a netip.Addr) bool {
	return slices.ContainsFunc(s.cfg.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(a) })
}

// tcpOf returns the TCP connection below a connection, nil if there is none.
func tcpOf(conn net.Conn) *net.TCPConn {
	for {
		switch c := conn.(type) {
		case *net.TCPConn:
			return c
		case *limitedConn:
			return c.TCPConn
		case interface{ NetConn() net.Conn }:
			conn = c.NetConn()
		default:
			return nil
		}
	}
}
