package relayd

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"culvert.dev/culvert/internal/config"
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
	s.ReadTimeout, s.WriteTimeout = requestTime, requestTime         // of requests that do not become connections of the relay
	s.ErrorLog = slog.NewLogLogger(r.log.Handler(), slog.LevelDebug) // of scanners, mostly
	r.http = append(r.http, s)
	r.serving.Go(func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			r.log.Error("a listener of the relay has ended", "addr", l.Addr(), "err", err)
		}
	})
}

// watchFiles looks at the allow list and the certificate until the relay stops.
func (r *Relay) watchFiles() {
	tick := time.NewTicker(r.cfg.Poll)
	defer tick.Stop()
	var certs certWatch
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
	before, _ := r.cert.leaf()
	problem := ""
	if err := r.cert.refresh(now); err != nil {
		if problem = err.Error(); problem != w.problem {
			r.log.Error("the certificate stays as it was", "err", err)
		}
	}
	w.problem = problem
	after, err := r.cert.leaf()
	if err != nil {
		return
	}
	if before != nil && !after.Equal(before) {
		r.log.Info("new certificate in use", "source", r.cert.kind(), "until", after.NotAfter)
	}
	if after.NotAfter.Sub(now) < certEnding && now.Sub(w.ending) > certRemind {
		w.ending = now
		r.log.Warn("the certificate is about to end and has not been renewed", "source", r.cert.kind(), "until", after.NotAfter)
	}
}

// refreshAllowed takes the allow file if it has changed. One with an error changes nothing.
func (r *Relay) refreshAllowed() {
	r.reloading.Lock()
	defer r.reloading.Unlock()
	conf := r.conf.Load()
	if !r.allowed.changed(conf.Server.AllowFile) {
		return
	}
	rules, err := readRules(conf, r.open(conf))
	if err != nil {
		r.log.Error("the allow list stays as it was", "err", err)
		return
	}
	r.useRulesLocked(conf, rules)
}

// useRulesLocked admits by new rules, from here on and those who are here already.
func (r *Relay) useRulesLocked(conf *config.RelayConfig, rules *rules) {
	added, removed := r.admission.set(rules)
	if r.wgstun != nil {
		r.wgstun.setFixed(fixedPeers(conf, rules))
	}
	r.server.Recheck()
	if added > 0 || removed > 0 {
		r.log.Info("allow list read again", "keys", len(rules.names), "added", added, "removed", removed)
	}
}
