package relay

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func TestServerURLs(t *testing.T) {
	for _, c := range []struct {
		url        string
		addr, norm string // "" if refused
	}{
		{"https://relay.example", "relay.example:443", "https://relay.example"},
		{"https://relay.example/", "relay.example:443", "https://relay.example"},
		{"https://relay.example:443", "relay.example:443", "https://relay.example"},
		{"https://relay.example:8443", "relay.example:8443", "https://relay.example:8443"},
		{"https://relay.example:08443", "relay.example:8443", "https://relay.example:8443"},
		{"http://relay.example", "relay.example:80", "http://relay.example"},
		{"https://192.0.2.1", "192.0.2.1:443", "https://192.0.2.1"},
		{"https://[2001:db8::1]", "[2001:db8::1]:443", "https://[2001:db8::1]"},
		{"https://[2001:db8::1]:8443", "[2001:db8::1]:8443", "https://[2001:db8::1]:8443"},
		{"HTTPS://relay.example", "relay.example:443", "https://relay.example"},
		{"", "", ""},
		{"relay.example", "", ""},
		{"relay.example:443", "", ""},
		{"wss://relay.example", "", ""},
		{"https://", "", ""},
		{"https://:443", "", ""},
		{"https://relay.example:", "", ""},
		{"https://relay.example:0", "", ""},
		{"https://relay.example:65536", "", ""},
		{"https://relay.example/derp", "", ""},
		{"https://relay.example?x", "", ""},
		{"https://relay.example?", "", ""},
		{"https://relay.example#x", "", ""},
		{"https://relay.example#", "", ""},
		{"https://a b", "", ""},
		{"https://a\r\nb", "", ""},
		{"https://alice:secret@relay.example", "", ""},
		{"https://alice:se%zzcret@relay.example", "", ""},
	} {
		got, err := Server{URL: c.url}.target()
		if (err == nil) != (c.addr != "") || err == nil && (got.addr != c.addr || got.url != c.norm) {
			t.Errorf("%q: %q %q %v, want %q %q", c.url, got.addr, got.url, err, c.addr, c.norm)
		}
		if err != nil && strings.Contains(err.Error(), "cret") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

func TestServerCheck(t *testing.T) {
	pin, err := ParsePin("sha256-raw:" + strings.Repeat("ab", 32))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		server Server
		fault  string
	}{
		{Server{URL: "https://relay.example", Pins: []Pin{pin}}, ""},
		{Server{URL: "http://relay.example", Pins: []Pin{pin}}, "a pin needs https"},
		{Server{URL: "https://relay.example", Pins: []Pin{{}}}, "empty pin"},
		{Server{URL: "https://relay.example", WebSocket: 3}, "unknown WebSocket"},
		{Server{URL: "https://relay.example", Proxy: "none"}, ""},
		{Server{URL: "https://relay.example", Proxy: "http://proxy:3128"}, ""},
		{Server{URL: "https://relay.example", Proxy: "https://alice:secret@proxy"}, ""},
		{Server{URL: "https://relay.example", Proxy: "socks5://proxy"}, "want none, http"},
		{Server{URL: "https://relay.example", Proxy: "proxy:3128"}, "want none, http"},
		{Server{URL: "https://relay.example", Proxy: "http://alice:se%zzcret@proxy"}, "not a URL"},
		{Server{URL: "https://relay.example", Proxy: "http://proxy/x"}, "nothing after"},
		{Server{URL: "https://relay.example", Proxy: "http://"}, "no valid host"},
	} {
		err := c.server.Check()
		if c.fault == "" && err != nil || c.fault != "" && (err == nil || !strings.Contains(err.Error(), c.fault)) {
			t.Errorf("%+v: %v, want %q", c.server, err, c.fault)
		}
		if err != nil && strings.Contains(err.Error(), "cret") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

func TestWebSocketModes(t *testing.T) {
	for text, want := range map[string]WebSocketMode{"": WebSocketAuto, "auto": WebSocketAuto, "Yes": WebSocketAlways, "no": WebSocketNever} {
		if got, err := ParseWebSocketMode(text); err != nil || got != want {
			t.Errorf("%q: %v %v, want %v", text, got, err, want)
		}
	}
	if _, err := ParseWebSocketMode("maybe"); err == nil {
		t.Error("maybe is a mode")
	}
	for _, m := range []WebSocketMode{WebSocketAuto, WebSocketAlways, WebSocketNever} {
		if got, err := ParseWebSocketMode(m.String()); err != nil || got != m {
			t.Errorf("%v does not round-trip", m)
		}
	}
}

func TestProxyOfTheEnvironment(t *testing.T) {
	var asked string
	answer := func(u *url.URL, err error) *Dialer {
		return &Dialer{environment: func(r *http.Request) (*url.URL, error) { asked = r.URL.String(); return u, err }}
	}
	target := func(s Server) *target {
		got, err := s.target()
		if err != nil {
			t.Fatal(err)
		}
		return &got
	}
	p, err := answer(url.Parse("http://alice:secret@proxy:3128")).proxyFor(target(Server{URL: "https://relay.example"}))
	if err != nil || p.addr != "proxy:3128" || p.login != "Basic YWxpY2U6c2VjcmV0" || asked != "https://relay.example:443" {
		t.Errorf("proxy %+v %v for %s", p, err, asked)
	}
	if strings.Contains(p.name, "secret") {
		t.Errorf("the proxy's name is %s", p.name)
	}
	asked = ""
	for _, setting := range []string{"none", "http://other:3128"} {
		p, err = answer(url.Parse("http://proxy:3128")).proxyFor(target(Server{URL: "https://relay.example", Proxy: setting}))
		if err != nil || asked != "" || p != nil != (setting != "none") {
			t.Errorf("%s: proxy %+v %v, asked for %q", setting, p, err, asked)
		}
	}
	if p, err = answer(nil, nil).proxyFor(target(Server{URL: "http://relay.example"})); p != nil || err != nil || asked != "http://relay.example:80" {
		t.Errorf("no proxy: %+v %v for %s", p, err, asked)
	}
	if _, err = answer(url.Parse("socks5://proxy")).proxyFor(target(Server{URL: "http://relay.example"})); err == nil || !strings.Contains(err.Error(), "environment") {
		t.Errorf("socks5 from the environment: %v", err)
	}
	if _, err = answer(nil, errors.New("secret")).proxyFor(target(Server{URL: "http://relay.example"})); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("no URL in the environment: %v", err)
	}
}

func FuzzServer(f *testing.F) {
	f.Add("https://relay.example", "http://alice:secret@proxy:3128")
	f.Add("https://[::1%25eth0]:1", "none")
	f.Add("http://a:1/?#", "https://[::]")
	f.Fuzz(func(t *testing.T, u, proxy string) {
		s := Server{URL: u, Proxy: proxy}
		got, err := s.target()
		if err != nil {
			return
		}
		// What was accepted is safe to put into a request, and its normal form means the same.
		if strings.ContainsAny(got.addr+got.authority(), "\r\n /\\@?#") {
			t.Fatalf("%q: host %q", u, got.addr)
		}
		again, err := Server{URL: got.url, Proxy: proxy}.target()
		if err != nil || again.addr != got.addr || again.tls != got.tls || again.url != got.url {
			t.Fatalf("%q: normal form %q: %v %+v", u, got.url, err, again)
		}
		if p := got.proxy.via; p != nil && strings.ContainsAny(p.addr+p.login+p.name, "\r\n@") {
			t.Fatalf("%q: proxy %+v", proxy, p)
		}
	})
}

func TestURLErrorsShowNoPassword(t *testing.T) {
	for _, url := range []string{
		"https:alice:secret@relay.example", "alice:secret@relay.example", "ftp://alice:secret@relay.example",
		"https://secret@relay.example", "https://relay.example/alice:secret@x", "//alice:secret@relay.example", "relay.example@secret:1",
	} {
		if err := (Server{URL: url}).Check(); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: error %v", url, err)
		}
	}
}
