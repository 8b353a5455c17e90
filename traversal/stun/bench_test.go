package stun

import (
	"testing"

	pion "github.com/pion/stun/v3"
)

// benchRequests are requests of clients as they are.
func benchRequests(t testing.TB) map[string][]byte {
	return map[string][]byte{
		"bare":        build(t),
		"fingerprint": build(t, pion.NewSoftware("some client"), pion.Fingerprint),
		"classic":     classic(build(t, change(0))),
		"change":      build(t, change(changePort)),
		"unknown":     build(t, attr(0x7777)),
	}
}

func BenchmarkAnswer(b *testing.B) {
	for _, name := range []string{"bare", "fingerprint", "classic", "unknown"} {
		b.Run(name, func(b *testing.B) {
			req := benchRequests(b)[name]
			dst := make([]byte, 0, MaxAnswerLen)
			b.ReportAllocs()
			for b.Loop() {
				Answer(dst, req, client4)
			}
		})
	}
}

// BenchmarkRespond is what the server does between the system calls, limits and counters included.
func BenchmarkRespond(b *testing.B) {
	for _, name := range []string{"bare", "fingerprint", "change"} {
		b.Run(name, func(b *testing.B) {
			g := fakeSite(3478, 3479, fourAddrs...)
			s := bareServer(b, ServerConfig{Rate: 1e9, Burst: 1e6, DiscoveryRate: 1e9, TotalRate: 1e9}, g)
			req := benchRequests(b)[name]
			dst := make([]byte, 0, maxMessage)
			now := int64(0)
			b.ReportAllocs()
			for b.Loop() {
				now += 1000
				s.respond(dst, req, place{g, fourAddrs[0], 0}, client4, now)
			}
		})
	}
}

func BenchmarkIs(b *testing.B) {
	req := build(b)
	for b.Loop() {
		if !Is(req) {
			b.Fatal("no")
		}
	}
}

// BenchmarkParseResponse is the cost of an answer to a client.
func BenchmarkParseResponse(b *testing.B) {
	answer := respondTo(build(b, pion.Fingerprint), "203.0.113.5:5")
	b.ReportAllocs()
	for b.Loop() {
		parseResponse(answer)
	}
}
