//go:build linux

package lab_test

import (
	"bytes"
	"fmt"
	"image"
	"image/png"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// page is a site with resources on two hosts. It counts what is asked of it.
type page struct {
	mu sync.Mutex
	// guards the following
	asked map[string]int // by path
}

const (
	pageResources = 60       // scripts, images and style sheets, half of them on the other host
	pageLarge     = 16 << 20 // of one that a script loads
	otherHost     = "http://db.mesh:8080"
)

func (p *page) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.asked[r.URL.Path]++
	p.mu.Unlock()
	rw.Header().Set("Cache-Control", "no-store")
	switch kind, _, _ := strings.Cut(r.URL.Path[1:], "/"); kind {
	case "":
		rw.Header().Set("Content-Type", "text/html")
		io.WriteString(rw, p.html())
	case "script":
		rw.Header().Set("Content-Type", "text/javascript")
		io.WriteString(rw, "loaded();"+strings.Repeat(" ", 20000))
	case "image":
		rw.Header().Set("Content-Type", "image/png")
		png.Encode(rw, image.NewGray(image.Rect(0, 0, 64, 64)))
	case "style":
		rw.Header().Set("Content-Type", "text/css")
		io.WriteString(rw, "body { color: black }"+strings.Repeat(" ", 20000))
	case "large":
		rw.Write(bytes.Repeat([]byte("x"), pageLarge))
	default:
		rw.WriteHeader(http.StatusNotFound)
	}
}

// html is the page itself. Its title says in the end how many resources were loaded, and how large the large one is.
func (p *page) html() string {
	var b strings.Builder
	b.WriteString("<html><head><script>var n = 0, failed = 0; function loaded() { n++ }</script>\n")
	var images strings.Builder
	for i := range pageResources {
		host := ""
		if i%2 == 1 {
			host = otherHost
		}
		switch i % 3 {
		case 0:
			fmt.Fprintf(&b, "<script src=%q onerror='failed++'></script>\n", fmt.Sprintf("%s/script/%d", host, i))
		case 1:
			fmt.Fprintf(&b, "<link rel=stylesheet href=%q onload='loaded()' onerror='failed++'>\n", fmt.Sprintf("%s/style/%d", host, i))
		case 2:
			fmt.Fprintf(&images, "<img src=%q onload='loaded()' onerror='failed++'>\n", fmt.Sprintf("%s/image/%d", host, i))
		}
	}
	b.WriteString(`<script>window.onload = function() {
		var x = new XMLHttpRequest(); x.open('GET', '/large', false); x.send();
		document.title = n + ' loaded, ' + failed + ' failed, large ' + x.responseText.length;
	}</script></head><body>` + images.String() + "</body></html>\n")
	return b.String()
}

var pageTitle = regexp.MustCompile(`<title>(.*)</title>`)

// TestProxyBrowser has a browser load a page with many resources of two hosts.
func TestProxyBrowser(t *testing.T) {
	t.Parallel()
	lab.Need(t, "chromium")
	w := newProxied(t, proxiedConfig{client: programProxies})
	w.listening(t, 1080)
	p := &page{asked: make(map[string]int)}
	web(t, w.S, p, lab.Port(lab.Server[0], 80))
	web(t, w.DB, p, lab.Port(lab.ProxyMesh["db"][0], 8080))
	for _, proxy := range []string{"socks5://127.0.0.1:1080", "http://127.0.0.1:1080"} {
		t.Run(proxy, func(t *testing.T) {
			p.mu.Lock()
			clear(p.asked)
			p.mu.Unlock()
			start := time.Now()
			out, err := w.C.Exec("", "timeout", "-k", "1", "60", "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
				"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions", "--user-data-dir="+t.TempDir(),
				"--proxy-server="+proxy, "--dump-dom", "http://v4.example/")
			t.Logf("%v", time.Since(start).Round(time.Millisecond))
			want := fmt.Sprintf("%d loaded, 0 failed, large %d", pageResources, pageLarge)
			if m := pageTitle.FindStringSubmatch(out); m == nil || m[1] != want {
				t.Errorf("%v: the page says %q, want %q:\n%s", err, m, want, out)
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			for i := range pageResources {
				if path := fmt.Sprintf("/%s/%d", []string{"script", "style", "image"}[i%3], i); p.asked[path] != 1 {
					t.Errorf("the servers were asked %d times for %s", p.asked[path], path)
				}
			}
		})
	}
}
