package show_test

import (
	"testing"
	"time"

	"culvert.dev/culvert/internal/show"
)

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "0s", 0: "0s", 59*time.Second + 999*time.Millisecond: "59s", time.Minute: "1m00s", 3599 * time.Second: "59m59s",
		time.Hour: "1h00m", 24*time.Hour - time.Second: "23h59m", 24 * time.Hour: "1d00h", 100*24*time.Hour + 5*time.Hour: "100d05h",
	} {
		if got := show.Span(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

func TestBytes(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.00 KiB", 10234: "9.99 KiB", 10240: "10.0 KiB", 102400: "100 KiB", 1<<20 - 1: "1.00 MiB",
		1 << 30: "1.00 GiB", 1<<64 - 1: "16.0 EiB",
	} {
		if got := show.Bytes(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestText(t *testing.T) {
	if got := show.Printable("a\x1b[31m\tb\u202eä"); got != "a?[31m?b?ä" {
		t.Errorf("%q", got)
	}
	if show.OrDash("") != "-" || show.OrDash("x") != "x" {
		t.Error("a dash stands for nothing else than nothing")
	}
}
