package interop

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"culvert.dev/culvert/interop/stock"
)

// middlebox stands between clients and a relay as a company's TLS proxy does: it ends TLS with a certificate of its own and
// begins it again towards the relay. Clients do not see the relay's metacert. It can put frames of its own between those
// of the relay, and remembers what the clients say.
type middlebox struct {
	url   string
	roots *x509.CertPool // trusts the middlebox, and the relay too

	mu    sync.Mutex // guards the following, and writes to clients
	conns map[net.Conn]bool
	heard []byte // from clients
}

// startMiddlebox stands in front of a relay until the end of the test. extra certificates (DER) follow its own.
func startMiddlebox(t *testing.T, p place, extra ...[]byte) *middlebox {
	t.Helper()
	cert, roots, err := stock.SelfSigned()
	if err != nil {
		t.Fatal(err)
	}
	if p.leaf != nil {
		roots.AddCert(p.leaf)
	}
	cert.Certificate = append(cert.Certificate, extra...)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	m := &middlebox{url: "https://" + l.Addr().String(), roots: roots, conns: map[net.Conn]bool{}}
	var done sync.WaitGroup
	done.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			done.Go(func() { m.serve(client, p) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		m.mu.Lock()
		for c := range m.conns {
			c.Close()
		}
		m.mu.Unlock()
		done.Wait()
	})
	return m
}

func (m *middlebox) serve(client net.Conn, p place) {
	defer client.Close()
	server, err := tls.Dial("tcp", strings.TrimPrefix(p.url, "https://"), &tls.Config{RootCAs: p.roots, ServerName: "127.0.0.1"})
	if err != nil {
		return
	}
	defer server.Close()
	m.mu.Lock()
	m.conns[client] = true
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.conns, client)
		m.mu.Unlock()
	}()
	var both sync.WaitGroup
	both.Go(func() {
		defer server.Close()
		io.Copy(io.MultiWriter(writerFunc(m.hear), server), client)
	})
	both.Go(func() {
		defer client.Close()
		io.Copy(writerFunc(func(b []byte) (int, error) {
			m.mu.Lock()
			defer m.mu.Unlock()
			return client.Write(b)
		}), server)
	})
	both.Wait()
}

func (m *middlebox) hear(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.heard = append(m.heard, b...)
	return len(b), nil
}

// inject writes to all clients. The relay must be silent at the moment, so that it falls between two frames.
func (m *middlebox) inject(b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for c := range m.conns {
		c.Write(b)
	}
}

// hears reports whether clients have said this.
func (m *middlebox) hears(text string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Contains(string(m.heard), text)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// bytesWriter collects what is written to it.
type bytesWriter []byte

func (b *bytesWriter) Write(p []byte) (int, error) {
	*b = append(*b, p...)
	return len(p), nil
}

func (b *bytesWriter) buffered() *bufio.Writer { return bufio.NewWriter(b) }
