package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/control/openmetrics"
)

// metricNode has metrics too.
type metricNode struct {
	fakeNode
	metrics []Metric
}

func (n *metricNode) Metrics() []Metric { return n.metrics }

var odd = "a\\b\"c\nd\xff,}e"

func testMetrics() []Metric {
	return []Metric{
		{Name: "t_build", Type: Info, Help: "What\nit is, \"so\".", Samples: []Sample{{Labels: []Label{{"version", "1"}}, Value: 1}}},
		{Name: "t_empty", Help: "Left out."},
		{Name: "t_bytes", Type: Counter, Unit: "bytes", Help: "Bytes.", Samples: []Sample{
			{Labels: []Label{{"peer", odd}, {"kind", ""}}, Value: 1 << 60}, {Labels: []Label{{"peer", "x"}, {"kind", "y"}}, Value: 12345678901234},
		}},
		{Name: "t_seconds", Unit: "seconds", Help: "Time.", Samples: []Sample{{Value: 0.25}}},
		{Name: "t_infinite", Help: "Large.", Samples: []Sample{{Value: math.Inf(1)}}},
	}
}

func TestMetricsAreOpenMetrics(t *testing.T) {
	var b bytes.Buffer
	if err := WriteMetrics(&b, testMetrics()); err != nil {
		t.Fatal(err)
	}
	got, err := openmetrics.Parse(b.Bytes())
	if err != nil {
		t.Fatalf("%v\n%s", err, b.String())
	}
	for key, want := range map[string]float64{
		`t_build_info{version="1"}`:                                   1,
		`t_bytes_total{peer="a\\b\"c\nd` + "\uFFFD" + `,}e",kind=""}`: 1 << 60,
		`t_bytes_total{peer="x",kind="y"}`:                            12345678901234,
		`t_seconds`:                                                   0.25,
		`t_infinite`:                                                  math.Inf(1),
	} {
		if v, ok := got[key]; !ok || v != want {
			t.Errorf("%s: got %v, want %v\n%s", key, v, want, b.String())
		}
	}
	if len(got) != 5 || !strings.Contains(b.String(), "} 12345678901234\n") {
		t.Errorf("got\n%s", b.String())
	}
}

func FuzzMetricLabels(f *testing.F) {
	f.Add(odd, 1.5)
	f.Fuzz(func(t *testing.T, text string, v float64) {
		var b bytes.Buffer
		WriteMetrics(&b, []Metric{{Name: "t", Help: text, Samples: []Sample{{Labels: []Label{{"a", text}, {"b", ""}}, Value: v}}}})
		values, err := openmetrics.Parse(b.Bytes())
		if err != nil || len(values) != 1 {
			t.Fatalf("%v, %v:\n%s", values, err, b.String())
		}
		for _, got := range values {
			if got != v && !math.IsNaN(v) {
				t.Errorf("got %v, want %v", got, v)
			}
		}
	})
}

func get(t *testing.T, method, url string) (code int, header http.Header, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

func TestHTTPServesMonitoringAndNothingElse(t *testing.T) {
	n := &metricNode{metrics: testMetrics()}
	n.healthErr = errors.New("no peer answers")
	s, err := ListenHTTP(netip.MustParseAddrPort("127.0.0.1:0"), n, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Shutdown(t.Context())
	base := "http://" + s.Addr().String()
	code, header, body := get(t, "GET", base+"/metrics")
	if _, err := openmetrics.Parse([]byte(body)); err != nil || code != 200 || header.Get("Content-Type") != metricsType {
		t.Errorf("metrics: %d, %v, %v", code, header, err)
	}
	for _, c := range []struct {
		method, path string
		code         int
		body         string
	}{
		{"GET", "/healthz", 200, "ok\n"},
		{"HEAD", "/healthz", 200, ""},
		{"GET", "/readyz", 503, "no peer answers\n"},
		{"POST", "/metrics", 405, "use GET\n"},
		{"GET", "/", 404, "there are /metrics, /healthz and /readyz\n"},
		{"GET", "/v1/status", 404, "there are /metrics, /healthz and /readyz\n"},
		{"POST", "/v1/reload", 405, "use GET\n"},
		{"GET", "/v1/conntrack", 404, "there are /metrics, /healthz and /readyz\n"},
	} {
		if code, _, body := get(t, c.method, base+c.path); code != c.code || body != c.body {
			t.Errorf("%s %s: %d %q, want %d %q", c.method, c.path, code, body, c.code, c.body)
		}
	}
	n.healthErr = nil
	if code, _, body := get(t, "GET", base+"/readyz"); code != 200 || body != "ready\n" {
		t.Errorf("ready: %d %q", code, body)
	}
	if n.reloads.Load() != 0 {
		t.Error("the node was reloaded")
	}
}

func TestHTTPAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = ListenHTTP(l.Addr().(*net.TCPAddr).AddrPort(), &fakeNode{}, nil)
	wantError(t, err, "listen for HTTP on "+l.Addr().String(), "another program uses", "choose another port")
	_, err = ListenHTTP(netip.MustParseAddrPort("192.0.2.77:9090"), &fakeNode{}, nil)
	wantError(t, err, "no such address")
}

func TestHTTPShutdownEndsIdleConnections(t *testing.T) {
	s, err := ListenHTTP(netip.MustParseAddrPort("127.0.0.1:0"), &fakeNode{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
	io.ReadFull(c, make([]byte, 10))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("the connection is left open: %v", err)
	}
}

func TestMetricsOnTheControlSocket(t *testing.T) {
	path := serveQuietly(t, &metricNode{metrics: testMetrics()})
	c := http.Client{Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) }, DisableKeepAlives: true,
	}}
	resp, err := c.Get("http://culvert/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if _, err := openmetrics.Parse(body); err != nil || resp.StatusCode != 200 {
		t.Errorf("%s: %v", resp.Status, err)
	}
	_, path = serve(t, &fakeNode{})
	if resp, err = c.Get("http://culvert/metrics"); err == nil {
		resp.Body.Close()
	}
	if err != nil || resp.StatusCode != 404 {
		t.Errorf("a source without metrics: %v, %v", resp, err)
	}
}
