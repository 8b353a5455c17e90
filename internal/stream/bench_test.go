package stream

import (
	"io"
	"testing"
	"time"
)

// BenchmarkRelay moves bytes through a relay over loopback, one way.
func BenchmarkRelay(b *testing.B) {
	const chunk = 128 << 10
	x, y, result := relayed(b, RelayConfig{})
	x.SetDeadline(time.Time{})
	y.SetDeadline(time.Time{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{y}, make([]byte, chunk))
		y.Close()
	}()
	data := make([]byte, chunk)
	b.SetBytes(chunk)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := x.Write(data); err != nil {
			b.Fatal(err)
		}
	}
	x.CloseWrite()
	<-done
	<-result
}

// BenchmarkRoundTrip is a byte there and back, through a relay.
func BenchmarkRoundTrip(b *testing.B) {
	x, y, result := relayed(b, RelayConfig{})
	x.SetDeadline(time.Time{})
	y.SetDeadline(time.Time{})
	go io.CopyBuffer(struct{ io.Writer }{y}, struct{ io.Reader }{y}, make([]byte, 1))
	var p [1]byte
	b.ReportAllocs()
	for b.Loop() {
		x.Write(p[:])
		io.ReadFull(x, p[:])
	}
	x.Close()
	y.Close()
	<-result
}
