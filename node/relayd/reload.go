package relayd

import (
	"errors"
	"fmt"
	"slices"

	"culvert.dev/culvert/internal/config"
)

// Reload reads the configuration, the allow list and the certificate again and applies what has changed. Clients that are no longer
// allowed are disconnected, nobody else is. On an error nothing has changed; so it is where a change needs a restart.
func (r *Relay) Reload() error {
	r.reloading.Lock()
	defer r.reloading.Unlock()
	if r.ctx.Err() != nil || r.draining.Load() {
		return errors.New("the relay is stopping")
	}
	conf, err := r.cfg.load()
	if err != nil {
		return err
	}
	if what := needsRestart(r.conf.Load(), conf); what != "" {
		return fmt.Errorf("%s has changed: that needs a restart, nothing was applied", what)
	}
	rules, err := readRules(conf, r.open(conf))
	if err != nil {
		return err
	}
	if f, ok := r.cert.(*fileCert); ok {
		if err := f.reload(); err != nil {
			return err
		}
	}
	if err := r.server.SetLimits(r.limits(conf)); err != nil {
		return err
	}
	if s := &conf.Server; s.MaxClients != r.conf.Load().Server.MaxClients {
		r.warnOfLimits(conf)
	}
	r.useConfig(conf)
	r.useRulesLocked(conf, rules)
	r.log.Info("configuration reloaded", "file", r.cfg.File, "keys", len(rules.names), "open", rules.open)
	return nil
}

// needsRestart names the first key that differs and that a running relay cannot take, "" if there is none.
func needsRestart(a, b *config.RelayConfig) string {
	s, t := &a.Server, &b.Server
	for _, c := range []struct {
		name string
		same bool
	}{
		{"[Relay] Name", s.Name == t.Name},
		{"[Relay] Listen", slices.Equal(s.Listen, t.Listen)},
		{"[Relay] PrivateKey", s.Key == t.Key},
		{"[Relay] URL", s.URL == t.URL},
		{"[Relay] TLS", s.TLS == t.TLS},
		{"[Relay] Certificate", s.Certificate == t.Certificate && s.CertificateKey == t.CertificateKey},
		{"[Relay] Domain", slices.Equal(s.Domains, t.Domains)},
		{"[Relay] ACMEDirectory", s.ACMEDirectory == t.ACMEDirectory},
		{"[Relay] ACMEEmail", s.ACMEEmail == t.ACMEEmail},
		{"[Relay] ACMERootCA", s.ACMERootCA == t.ACMERootCA},
		{"[Relay] ListenHTTP", slices.Equal(s.ListenHTTP, t.ListenHTTP)},
		{"[Relay] TrustProxy", slices.Equal(s.TrustProxy, t.TrustProxy)},
		{"[STUN] Listen", slices.Equal(a.STUN.Listen, b.STUN.Listen)},
		{"[WGSTUN] Listen", slices.Equal(a.WGSTUN.Listen, b.WGSTUN.Listen)},
		{"[WGSTUN] PrivateKey", a.WGSTUN.Key == b.WGSTUN.Key},
		{"[WGSTUN] Address", slices.Equal(a.WGSTUN.Addresses, b.WGSTUN.Addresses)},
		{"[Control]", a.Control == b.Control},
	} {
		if !c.same {
			return c.name
		}
	}
	return ""
}
