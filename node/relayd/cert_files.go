package relayd

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// fileCert is a certificate in files that something else renews. New files are taken without a restart; connections that are
// open go on.
type fileCert struct {
	cert, key string // the files
	current   atomic.Pointer[tls.Certificate]

	mu     sync.Mutex // guards the following
	loaded stamp      // of the files when current was read
	seen   stamp      // at the last look
}

// newFileCert reads the files, which must be fit for use.
func newFileCert(cert, key string) (*fileCert, error) {
	f := &fileCert{cert: cert, key: key}
	at := stampOf(cert, key)
	if err := f.load(); err != nil {
		return nil, err
	}
	f.loaded, f.seen = at, at
	return f, nil
}

func (f *fileCert) kind() string { return certFiles }

func (f *fileCert) get(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.current.Load(), nil }

func (f *fileCert) leaf() (*x509.Certificate, error) { return f.current.Load().Leaf, nil }

// refresh reads the files again once they have changed and are the same at two looks, so that one that is half written, or a
// new certificate beside the old key, is let be. Files that cannot be used are an error at each look.
func (f *fileCert) refresh(time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := stampOf(f.cert, f.key)
	settled := at == f.seen
	f.seen = at
	if !settled || at == f.loaded {
		return nil
	}
	return f.takeLocked(at)
}

// reload reads the files at once, whether they seem to have changed or not.
func (f *fileCert) reload() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.takeLocked(stampOf(f.cert, f.key))
}

func (f *fileCert) takeLocked(at stamp) error {
	if err := f.load(); err != nil {
		return err
	}
	f.loaded = at
	return nil
}

func (f *fileCert) load() error {
	c, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return fmt.Errorf("certificate %s with key %s: %w", f.cert, f.key, err)
	}
	if c.Leaf == nil {
		if c.Leaf, err = x509.ParseCertificate(c.Certificate[0]); err != nil {
			return fmt.Errorf("certificate %s: %w", f.cert, err)
		}
	}
	f.current.Store(&c)
	return nil
}
