package proxy

import (
	"bytes"
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// curl as a client that this project has not written.
func TestHTTPByCurl(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("curl is not installed")
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		n, _ := io.Copy(sum, r.Body)
		fmt.Fprintf(w, "%s %s %d %x auth=%q te=%v\n", r.Method, r.RequestURI, n, sum.Sum(nil), r.Header.Get("Proxy-Authorization"), r.TransferEncoding)
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer secure.Close()
	hosts := map[string]string{"a.test": plain.Listener.Addr().String(), "example.com": secure.Listener.Addr().String()}
	open := startHTTP(t, &hostsDialer{hosts: hosts}, Config{})
	closed := startHTTP(t, &hostsDialer{hosts: hosts}, Config{Users: []User{{"ann", "pw"}}})

	dir := t.TempDir()
	ca, file := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "file")
	content := bytes.Repeat([]byte("culvert "), 1<<17)
	sum := fmt.Sprintf("%d %x", len(content), sha256.Sum256(content))
	for name, b := range map[string][]byte{ca: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), file: content} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name string
		args []string
		want []string
	}{
		{"plain", []string{"-x", "http://" + open, "http://a.test/x"}, []string{"GET /x 0 ", "200/"}},
		{"two on one connection", []string{"-x", "http://" + open, "http://a.test/x", "http://a.test/y"}, []string{"GET /x", "GET /y", "200/1\n", "200/0\n"}},
		{"HTTP/1.0", []string{"-0", "-x", "http://" + open, "http://a.test/x"}, []string{"GET /x 0 ", "200/"}},
		{"proxied by HTTP/1.0", []string{"--proxy1.0", open, "-p", "http://a.test/x"}, []string{"GET /x 0 ", "200/"}},
		{"a tunnel", []string{"-p", "-x", "http://" + open, "http://a.test/x"}, []string{"GET /x 0 ", "200/"}},
		{"TLS", []string{"--cacert", ca, "-x", "http://" + open, "https://example.com/x"}, []string{"GET /x 0 ", "200/"}},
		{"an upload", []string{"-T", file, "-x", "http://" + open, "http://a.test/x"}, []string{"PUT /x " + sum, "200/"}},
		{"an upload in chunks", []string{"-H", "Transfer-Encoding: chunked", "-T", file, "-x", "http://" + open, "http://a.test/x"}, []string{"PUT /x " + sum, "te=[chunked]"}},
		{"Expect", []string{"-H", "Expect: 100-continue", "--expect100-timeout", "9", "--data-binary", "@" + file, "-x", "http://" + open, "http://a.test/x"}, []string{"POST /x " + sum, "200/"}},
		{"a user", []string{"--proxy-user", "ann:pw", "-x", "http://" + closed, "http://a.test/x"}, []string{`auth=""`, "200/"}},
		{"a user, asked first", []string{"--proxy-anyauth", "--proxy-user", "ann:pw", "-d", "body", "-x", "http://" + closed, "http://a.test/x"}, []string{`POST /x 4 `, "200/"}},
		{"a user with TLS, asked first", []string{"--proxy-anyauth", "--proxy-user", "ann:pw", "--cacert", ca, "-x", "http://" + closed, "https://example.com/x"}, []string{"GET /x 0 ", `auth=""`, "200/1"}},
		{"no user", []string{"-x", "http://" + closed, "http://a.test/x"}, []string{"user name and a password", "407/"}},
		{"WebSocket's upgrade refused", []string{"-H", "Connection: Upgrade", "-H", "Upgrade: websocket", "-x", "http://" + open, "http://a.test/x"}, []string{"GET /x 0 ", "200/"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{"-q", "-sS", "--noproxy", "", "-m", "20", "-w", "%{http_code}/%{num_connects}\n"}, tt.args...)
			cmd := exec.Command("curl", args...)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("curl %q: %v\n%s", args, err, out)
			}
			for _, want := range tt.want {
				if !strings.Contains(string(out), want) {
					t.Errorf("got %q, want %q in it", out, want)
				}
			}
		})
	}
}
