package relayd

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAcceptErrorsAreToldNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out lines
		l := newHTTPLog(slog.New(slog.NewTextHandler(&out, nil)))
		l.Print("http: TLS handshake error from 192.0.2.1:999: EOF")
		if out.String() != "" {
			t.Errorf("a scanner is told of: %s", out.String())
		}
		for range 120 {
			l.Print("http: Accept error: accept tcp [::]:443: accept4: too many open files; retrying in 1s")
			time.Sleep(time.Second)
		}
		if n := strings.Count(out.String(), "\n"); n != 2 {
			t.Errorf("%d lines in two minutes:\n%s", n, out.String())
		}
	})
}
