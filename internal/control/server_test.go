package control

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

type fakeNode struct {
	status    any
	healthErr error
	reloadErr error
	reloads   atomic.Int32
	inReload  atomic.Int32
	gate      chan struct{} // when set, Reload waits for it
}

func (n *fakeNode) Status() any     { return n.status }
func (n *fakeNode) Health() error   { return n.healthErr }
func (n *fakeNode) Version() string { return "1.2.3" }
func (n *fakeNode) Reload() error {
	if n.inReload.Add(1) > 1 {
		return errors.New("two reloads at once")
	}
	defer n.inReload.Add(-1)
	if n.gate != nil {
		<-n.gate
	}
	n.reloads.Add(1)
	return n.reloadErr
}

func serve(t *testing.T, n *fakeNode) (*Client, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "control.sock")
	before := runtime.NumGoroutine()
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := Serve(l, n, nil)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s.Shutdown(ctx)
		if _, err := os.Lstat(path); err == nil {
			t.Error("the socket is left behind")
		}
		for range 200 {
			if runtime.NumGoroutine() <= before {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Errorf("%d goroutines are left", runtime.NumGoroutine()-before)
	})
	return NewClient(path), path
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q, want it to contain %q", err, p)
		}
	}
}

func TestCalls(t *testing.T) {
	ctx := context.Background()
	n := &fakeNode{status: map[string]int{"answer": 42}}
	c, _ := serve(t, n)
	var status struct{ Answer int }
	if err := c.Status(ctx, &status); err != nil || status.Answer != 42 {
		t.Errorf("status: %v, %v", status, err)
	}
	if err := c.Health(ctx); err != nil {
		t.Errorf("health: %v", err)
	}
	if v, err := c.Version(ctx); err != nil || v != "1.2.3" {
		t.Errorf("version: %q, %v", v, err)
	}
	if err := c.Reload(ctx); err != nil || n.reloads.Load() != 1 {
		t.Errorf("reload: %v, %d calls", err, n.reloads.Load())
	}
	u, err := c.Runtime(ctx)
	if err != nil || u.Goroutines < 2 || u.FDs < 4 || u.RSSBytes < 1<<20 || u.HeapBytes < 1<<10 {
		t.Errorf("runtime: %+v, %v", u, err)
	}
}

func TestRefusals(t *testing.T) {
	ctx := context.Background()
	c, _ := serve(t, &fakeNode{healthErr: errors.New("no peer has a handshake"), reloadErr: errors.New("culvert.conf:3: unknown key Foo"), status: func() {}})
	var notReady *NotReadyError
	if err := c.Health(ctx); !errors.As(err, &notReady) || notReady.Reason != "no peer has a handshake" {
		t.Errorf("health: %v", err)
	}
	if err := c.Reload(ctx); err == nil || err.Error() != "culvert.conf:3: unknown key Foo" {
		t.Errorf("reload: %v", err)
	}
	if err := c.Status(ctx, new(any)); err == nil || !strings.Contains(err.Error(), "cannot be encoded") {
		t.Errorf("status that is no JSON: %v", err)
	}
}

func TestHTTP(t *testing.T) {
	_, path := serve(t, &fakeNode{healthErr: errors.New("starting"), reloadErr: errors.New("bad")})
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", path)
	}}}
	for _, c := range []struct {
		method, path string
		code         int
		body         string
	}{
		{"GET", "/v1/status", 200, "null"},
		{"HEAD", "/v1/status", 200, ""},
		{"POST", "/v1/status", 405, `{"error":"use GET"}`},
		{"GET", "/v1/health", 503, `{"ready":false,"reason":"starting"}`},
		{"GET", "/v1/version", 200, `{"version":"1.2.3"}`},
		{"GET", "/v1/reload", 405, `{"error":"use POST"}`},
		{"POST", "/v1/reload", 422, `{"error":"bad"}`},
		{"GET", "/", 404, `{"error":"there is no /"}`},
		{"GET", "/v2/status", 404, `{"error":"there is no /v2/status"}`},
	} {
		req, err := http.NewRequest(c.method, "http://x"+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if got := strings.TrimSpace(string(body)); resp.StatusCode != c.code || got != c.body {
			t.Errorf("%s %s: %d %s, want %d %s", c.method, c.path, resp.StatusCode, got, c.code, c.body)
		}
		if got := resp.Header.Get("Content-Type"); got != "application/json" {
			t.Errorf("%s %s: content type %q", c.method, c.path, got)
		}
	}
}

func TestHeaderSizeIsBounded(t *testing.T) {
	_, path := serve(t, &fakeNode{})
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	io.WriteString(conn, "GET /v1/status HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 64<<10)+"\r\n\r\n")
	answer, _ := io.ReadAll(conn)
	if !strings.HasPrefix(string(answer), "HTTP/1.1 431 ") {
		t.Errorf("got %.40q, want 431", answer)
	}
}

func TestReloadsDoNotOverlap(t *testing.T) {
	n := &fakeNode{gate: make(chan struct{})}
	c, _ := serve(t, n)
	errs := make(chan error, 3)
	for range 3 {
		go func() { errs <- c.Reload(context.Background()) }()
	}
	for range 3 {
		n.gate <- struct{}{}
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestShutdownLetsRequestsEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	n := &fakeNode{gate: make(chan struct{})}
	s := Serve(l, n, nil)
	errs := make(chan error, 1)
	go func() { errs <- NewClient(path).Reload(context.Background()) }()
	for n.inReload.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(context.Background()) }()
	for {
		if _, err := os.Lstat(path); err != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	close(n.gate)
	if err := <-errs; err != nil {
		t.Errorf("the request in flight ended with %v", err)
	}
	if err := <-down; err != nil {
		t.Errorf("shutdown: %v", err)
	}
}

func TestShutdownDoesNotWaitForEver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	n := &fakeNode{gate: make(chan struct{})}
	defer close(n.gate)
	s := Serve(l, n, nil)
	errs := make(chan error, 1)
	go func() { errs <- NewClient(path).Reload(context.Background()) }()
	for n.inReload.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown: %v, want deadline exceeded", err)
	}
	if err := <-errs; err == nil || !strings.Contains(err.Error(), "closed the connection") {
		t.Errorf("the request was ended with %v", err)
	}
}

func TestClientErrorsSayWhatToDo(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	path := filepath.Join(dir, "control.sock")
	wantError(t, NewClient(path).Health(ctx), "no culvert is running for "+path, "start it with: culvert up")
	wantError(t, NewClient(filepath.Join(path, "x")).Health(ctx), "no culvert is running")

	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	wantError(t, NewClient(path).Health(ctx), "no culvert is running for "+path, "killed")

	silentPath := filepath.Join(dir, "silent.sock")
	l, err := net.Listen("unix", silentPath)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	wantError(t, NewClient(silentPath).Health(short), "does not answer")

	if os.Geteuid() == 0 {
		return // root is refused nothing
	}
	os.Chmod(silentPath, 0)
	wantError(t, NewClient(silentPath).Health(ctx), "permission denied", "uid")
}

func TestAnswerThatIsNoJSON(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/health" {
			http.Error(w, "proxy", http.StatusBadGateway)
			return
		}
		io.WriteString(w, "hello")
	})}
	go srv.Serve(l)
	defer srv.Close()
	c := NewClient(path)
	wantError(t, c.Health(context.Background()), "502")
	_, err = c.Version(context.Background())
	wantError(t, err, "not what this version")
}
