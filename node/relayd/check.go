package relayd

import (
	"fmt"
	"net/url"
	"time"

	"culvert.dev/culvert/internal/config"
)

// Check reads the files that a configuration names for the certificate, as a relay that starts does, and reports what is wrong with
// them. Errors keep a relay from starting; warnings are what clients would complain of.
func Check(conf *config.RelayConfig, now time.Time) (errs, warnings []config.Diagnostic) {
	s := &conf.Server
	switch s.TLS {
	case config.TLSACME:
		if s.ACMERootCA == "" {
			return nil, nil
		}
		if _, err := readRoots(s.ACMERootCA); err != nil {
			errs = append(errs, config.Diagnostic{File: conf.File, Message: err.Error()})
		}
	case config.TLSFiles:
		cert, err := newFileCert(s.Certificate, s.CertificateKey)
		if err != nil {
			return []config.Diagnostic{{File: conf.File, Message: err.Error()}}, nil
		}
		warn := func(format string, args ...any) {
			warnings = append(warnings, config.Diagnostic{File: s.Certificate, Message: fmt.Sprintf(format, args...)})
		}
		leaf, _ := cert.leaf()
		switch {
		case now.After(leaf.NotAfter):
			warn("the certificate has ended on %s: nodes without a Pin for it refuse it; renew it", leaf.NotAfter.Format(time.DateOnly))
		case now.Before(leaf.NotBefore):
			warn("the certificate begins on %s only, or the clock of this host is wrong", leaf.NotBefore.Format(time.DateOnly))
		}
		if u, err := url.Parse(s.URL); err == nil && s.URL != "" && leaf.VerifyHostname(u.Hostname()) != nil {
			warn("the certificate is not for %s, which URL names: nodes without a Pin for it refuse it", u.Hostname())
		}
	}
	return errs, warnings
}
