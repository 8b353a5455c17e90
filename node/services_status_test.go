package node

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/proxy"
)

// What a program was refused for is in the status of the proxy, and wrong passwords are counted there and in the metrics.
func TestStatusTellsWhyAProxyDidNotServe(t *testing.T) {
	at := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	w := newLoneNode(t, "[SOCKS5]\nListen = "+at+"\nUser = alice:secret\n")
	ask := func(password string) {
		t.Helper()
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		err = proxy.Connect(t.Context(), c, proxy.Target{Name: "www.example", Port: 443}, &proxy.User{Name: "alice", Password: password})
		if err == nil {
			t.Error("it is served")
		}
		io.Copy(io.Discard, c)
	}
	ask("hunter2")
	s := w.n.Status().Services[0]
	if s.Kind != "SOCKS5" {
		s = w.n.Status().Services[1]
	}
	if s.LastError != "user name or password is wrong" || s.LastErrorClient != "127.0.0.1" || s.LastErrorTarget != "" || s.BadLogins != 1 || s.Denied != 1 {
		t.Errorf("got %+v", s)
	}
	ask("secret")
	var text strings.Builder
	st := w.n.Status()
	if err := st.WriteText(&text, time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ago: 127.0.0.1 to www.example:443: ", "\n  wrong passwords: 1\n"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is missing in\n%s", want, text.String())
		}
	}
	if strings.Contains(text.String(), "secret") || strings.Contains(text.String(), "hunter2") {
		t.Errorf("a password is in\n%s", text.String())
	}
	counted := false
	for _, m := range serviceMetrics(st.Services, nil) {
		if m.Name != "culvert_service_bad_logins" {
			continue
		}
		for _, sample := range m.Samples {
			counted = counted || sample.Value == 1
		}
	}
	if !counted {
		t.Error("the metrics have no wrong password")
	}
}

func TestLastErrorOfAServiceInWords(t *testing.T) {
	for _, tt := range []struct {
		s    ServiceStatus
		want string
	}{
		{ServiceStatus{LastError: "dial: refused"}, "dial: refused"},
		{ServiceStatus{LastError: "refused", LastErrorClient: "::1"}, "::1: refused"},
		{ServiceStatus{LastError: "refused", LastErrorClient: "::1", LastErrorTarget: "db:1"}, "::1 to db:1: refused"},
	} {
		if got := tt.s.lastError(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}
