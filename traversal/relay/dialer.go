package relay

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

const (
	// dialTimeout bounds a whole Dial, from the name to the last frame of the handshake.
	dialTimeout = 10 * time.Second

	// familyDelay is the head start of the address family that the resolver prefers (RFC 8305 section 5 recommends 250 ms).
	familyDelay = 200 * time.Millisecond
)

// Dialer opens connections to relays. Only Key is required. It may be used by several goroutines at once and must not be changed
// after the first use.
type Dialer struct {
	Key wgkey.Private // the node's WireGuard key, by which the relay knows it

	// Roots are the authorities for relays without pins, and for proxies by https. Nil means the system's.
	Roots *x509.CertPool

	// DialTCP opens a TCP connection to addr, host:port with a name or an address. Nil means the system's resolver and both
	// address families raced. It must end when ctx does.
	DialTCP func(ctx context.Context, network, addr string) (net.Conn, error)

	Logger *slog.Logger // each attempt, at debug level. Nil discards

	// For tests.
	environment func(*http.Request) (*url.URL, error) // nil: http.ProxyFromEnvironment
	system      func(*net.Dialer)                     // changes what TCP is opened with; nil: nothing
}

// phaseError says in which part of a Dial something went wrong.
type phaseError struct {
	phase string
	err   error
}

func (e *phaseError) Error() string { return e.phase + ": " + e.err.Error() }
func (e *phaseError) Unwrap() error { return e.err }

// inPhase wraps an error with the phase that was reached. The end of the time allowed is what the operator should read then,
// not the I/O error that it caused.
func inPhase(ctx context.Context, phase string, err error) error {
	switch cause := ctx.Err(); {
	case errors.Is(cause, context.DeadlineExceeded):
		err = fmt.Errorf("no answer in time: %w", cause)
	case cause != nil:
		err = cause
	}
	return &phaseError{phase, err}
}

// Dial connects to s and returns when the relay has accepted the key. It takes 10 s at most. The error names the relay and the
// phase that did not succeed: connect, proxy, tls, upgrade or handshake.
func (d *Dialer) Dial(ctx context.Context, s Server) (*Conn, error) {
	t, err := s.target()
	if err != nil {
		return nil, err
	}
	if d.Key.IsZero() {
		return nil, fmt.Errorf("relay %s: no key to connect with", t.url)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	begin := time.Now()
	c, err := d.attempt(ctx, &t, t.webSocket == WebSocketAlways)
	var answer *refusal
	if errors.As(err, &answer) && answer.spoiled() && t.webSocket == WebSocketAuto {
		d.log().Debug("relay answered the upgrade with something else, trying WebSocket", "relay", t.url, "status", answer.status)
		plain := err
		if c, err = d.attempt(ctx, &t, true); err != nil {
			err = fmt.Errorf("%w; then by WebSocket: %w", plain, err)
		}
	}
	if err != nil {
		err = fmt.Errorf("relay %s: %w", t.url, err)
		d.log().Debug("relay not connected", "relay", t.url, "after", time.Since(begin), "err", err)
		return nil, err
	}
	d.log().Debug("relay connected", "relay", t.url, "transport", c.info.Transport, "after", time.Since(begin))
	return c, nil
}

func (d *Dialer) log() *slog.Logger {
	if d.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return d.Logger
}

// attempt goes through all phases once.
func (d *Dialer) attempt(ctx context.Context, t *target, webSocket bool) (*Conn, error) {
	info := Info{URL: t.url}
	bottom, stream, err := d.open(ctx, t, &info)
	if err != nil {
		return nil, err
	}
	s := &session{dialer: d, target: t, info: info, bottom: bottom, stream: stream}
	undo := interrupt(ctx, bottom)
	c, err := s.establish(ctx, webSocket)
	undo()
	if err == nil && ctx.Err() != nil {
		c.Close()
		err = inPhase(ctx, "handshake", ctx.Err())
	}
	if err != nil {
		s.abandon()
		return nil, err
	}
	return c, nil
}

// open returns a connection to the relay's address, through the proxy if there is one, and the TCP connection below it.
func (d *Dialer) open(ctx context.Context, t *target, info *Info) (bottom, stream net.Conn, err error) {
	p, err := d.proxyFor(t)
	if err != nil {
		return nil, nil, inPhase(ctx, "proxy", err)
	}
	if p != nil {
		info.Proxy = p.name
		bottom, stream, err = d.viaProxy(ctx, p, t.addr)
		if err != nil {
			return nil, nil, inPhase(ctx, "proxy "+p.name, err)
		}
		return bottom, stream, nil
	}
	c, err := d.dialTCP(ctx, t.addr)
	if err != nil {
		return nil, nil, inPhase(ctx, "connect", err)
	}
	return c, c, nil
}

func (d *Dialer) dialTCP(ctx context.Context, addr string) (net.Conn, error) {
	if d.DialTCP != nil {
		return d.DialTCP(ctx, "tcp", addr)
	}
	// Keep-alives of TCP are off: the pool pings, which tests more than the other kernel.
	dialer := net.Dialer{FallbackDelay: familyDelay, KeepAlive: -1, Control: shortSendQueue}
	if d.system != nil {
		d.system(&dialer)
	}
	return dialer.DialContext(ctx, "tcp", addr)
}

// session is a connection on its way to become a Conn.
type session struct {
	dialer *Dialer
	target *target
	info   Info
	bottom net.Conn // TCP: closing it ends everything above it, and unlike TLS waits for nothing
	stream net.Conn // what frames are written to
	end    func()   // lets go of what lies between; nil: nothing

	meta     wgkey.Public // the relay's key by its certificate
	hasMeta  bool
	canStart bool // the certificate allows a fast start
}

func (s *session) abandon() {
	s.bottom.Close()
	if s.end != nil {
		s.end()
	}
}

func (s *session) establish(ctx context.Context, webSocket bool) (*Conn, error) {
	if s.target.tls {
		if err := s.secure(ctx); err != nil {
			return nil, inPhase(ctx, "tls", err)
		}
	}
	var err error
	switch {
	case webSocket:
		s.info.Transport = TransportWebSocket
		err = s.upgradeWebSocket(ctx)
	case s.canStart:
		s.info.Transport = TransportFastStart
		err = s.fastStart()
	default:
		s.info.Transport = TransportDERP
		err = s.upgrade()
	}
	if err != nil {
		return nil, inPhase(ctx, "upgrade", err)
	}
	c := newConn(s)
	if err := c.handshake(s); err != nil {
		return nil, inPhase(ctx, "handshake", err)
	}
	c.start()
	return c, nil
}

// secure puts TLS on the stream and looks for the relay's key in the certificates.
func (s *session) secure(ctx context.Context) error {
	t := tls.Client(s.stream, s.dialer.tlsConfig(s.target))
	if err := t.HandshakeContext(ctx); err != nil {
		return tlsHint(err)
	}
	s.stream = t
	state := t.ConnectionState()
	s.info.TLS = tls.VersionName(state.Version)
	if state.Version < tls.VersionTLS13 {
		return nil // the certificates came in the clear, so that anybody on the way can have added one
	}
	var version int
	s.meta, version, s.hasMeta = derp.MetaKey(state.PeerCertificates)
	s.canStart = s.hasMeta && version == derp.Version
	return nil
}

func (d *Dialer) tlsConfig(t *target) *tls.Config {
	c := &tls.Config{
		ServerName: t.host,
		RootCAs:    d.Roots,
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		// Frames are written in large pieces; small records at the beginning would only slow them down.
		DynamicRecordSizingDisabled: true,
	}
	if len(t.pins) > 0 {
		c.InsecureSkipVerify = true
		c.VerifyConnection = func(state tls.ConnectionState) error { return checkPins(t.pins, state.PeerCertificates) }
	}
	return c
}

// tlsHint adds what to do about a certificate that cannot be verified.
func tlsHint(err error) error {
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		return fmt.Errorf("%w (a relay with a certificate of its own needs a Pin)", err)
	}
	return err
}
