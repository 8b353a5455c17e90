package relayd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"time"

	"culvert.dev/culvert/traversal/relay"
)

// serve starts everything that goes on until the relay stops.
func (r *Relay) serve() {
	var tlsConfig *tls.Config
	if r.cert != nil {
		tlsConfig = serverTLS(r.cert, r.server.MetaCertificate)
	}
	for _, l := range r.listeners {
		l = r.server.Listener(l)
		if tlsConfig != nil {
			l = tls.NewListener(l, tlsConfig)
		}
		r.serveOn(l, r.server.Handler())
	}
	for _, l := range r.plain {
		r.serveOn(r.server.Listener(l), challengeHandler(r.cert, plainHandler(r.server.Handler())))
	}
	if r.stun != nil {
		r.serving.Go(func() {
			if err := r.stun.Serve(); err != nil {
				r.log.Error("the STUN server has ended", "err", err)
			}
		})
	}
	if a, ok := r.cert.(*acmeCert); ok {
		r.wg.Go(func() { a.obtain(r.ctx) })
	}
	r.wg.Go(r.watchFiles)
}

func (r *Relay) serveOn(l net.Listener, handler http.Handler) {
	s := r.server.HTTPServer()
	s.Handler = handler
	s.ReadTimeout, s.WriteTimeout = requestTime, requestTime // of requests that do not become connections of the relay
	s.ErrorLog = newHTTPLog(r.log)
	r.http = append(r.http, s)
	r.serving.Go(func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			r.log.Error("a listener of the relay has ended: restart the relay", "addr", l.Addr(), "err", err)
			r.deaf.Store(true)
		}
	})
}

// watchFiles looks at the allow list and the certificate until the relay stops.
func (r *Relay) watchFiles() {
	tick := time.NewTicker(r.cfg.Poll)
	defer tick.Stop()
	certs := certWatch{leaf: r.leaf()}
	for {
		select {
		case <-r.ctx.Done():
			return
		case now := <-tick.C:
			r.refreshCert(now, &certs)
			r.refreshAllowed()
		}
	}
}

// certWatch is what has been told of the certificate.
type certWatch struct {
	problem string
	ending  time.Time
	leaf    *x509.Certificate // nil: there was none
}

// leaf is the certificate in use, nil if there is none.
func (r *Relay) leaf() *x509.Certificate {
	if r.cert == nil {
		return nil
	}
	leaf, err := r.cert.leaf()
	if err != nil {
		return nil
	}
	return leaf
}

const (
	certEnding = 7 * 24 * time.Hour // that are left when it is worth a warning
	certRemind = 24 * time.Hour     // until the next one
)

// refreshCert has the certificate renewed. An error is told once, until there is another one.
func (r *Relay) refreshCert(now time.Time, w *certWatch) {
	if r.cert == nil {
		return
	}
	problem := ""
	if err := r.cert.refresh(now); err != nil {
		if problem = err.Error(); problem != w.problem {
			r.log.Error("the certificate stays as it was", "err", err)
		}
	}
	w.problem = problem
	before, after := w.leaf, r.leaf()
	w.leaf = after
	if after == nil {
		return
	}
	if before != nil && !after.Equal(before) {
		w.ending = time.Time{}
		r.log.Info("new certificate in use", "source", r.cert.kind(), "until", after.NotAfter)
		if pin := r.pinToTell(); pin != "" && pin != relay.PinOf(before).String() {
			r.log.Warn("the new certificate has another key: nodes that pin the old one are refused until they have the new Pin", "pin", pin)
		}
	}
	if after.NotAfter.Sub(now) < certEnding && now.Sub(w.ending) > certRemind {
		w.ending = now
		what := "the certificate is about to end and has not been renewed"
		if now.After(after.NotAfter) {
			what = "the certificate has ended and has not been renewed: nodes without a Pin refuse it"
		}
		r.log.Warn(what, "source", r.cert.kind(), "until", after.NotAfter)
	}
}
