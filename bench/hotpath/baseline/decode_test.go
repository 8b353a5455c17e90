package baseline

import (
	"bytes"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

type sample struct {
	name string
	b    []byte
}

// samples are the packets that bench/hotpath has written down.
func samples(t testing.TB) (list []sample) {
	text, err := os.ReadFile("../testdata/packets.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		name, digits, ok := strings.Cut(strings.TrimSpace(line), " ")
		b, err := hex.DecodeString(digits)
		if !ok || err != nil {
			t.Fatalf("%.20q is no packet: %v", line, err)
		}
		list = append(list, sample{name, b})
	}
	return list
}

// parser decodes into layers of its own.
type parser struct {
	ip4     layers.IPv4
	ip6     layers.IPv6
	tcp     layers.TCP
	udp     layers.UDP
	payload gopacket.Payload
	found   []gopacket.LayerType
	v4, v6  *gopacket.DecodingLayerParser
}

func newParser() *parser {
	p := &parser{}
	p.v4 = gopacket.NewDecodingLayerParser(layers.LayerTypeIPv4, &p.ip4, &p.ip6, &p.tcp, &p.udp, &p.payload)
	p.v6 = gopacket.NewDecodingLayerParser(layers.LayerTypeIPv6, &p.ip4, &p.ip6, &p.tcp, &p.udp, &p.payload)
	return p
}

func (p *parser) decode(b []byte) error {
	if b[0]>>4 == 4 {
		return p.v4.DecodeLayers(b, &p.found)
	}
	return p.v6.DecodeLayers(b, &p.found)
}

func TestParserReadsTheSamples(t *testing.T) {
	list := samples(t)
	if len(list) < 4 {
		t.Fatalf("%d packets", len(list))
	}
	p := newParser()
	for _, s := range list {
		if err := p.decode(s.b); err != nil || len(p.found) != 3 {
			t.Fatalf("%s: %v, layers %v", s.name, err, p.found)
		}
		port, src := p.udp.DstPort, p.ip4.SrcIP
		if strings.HasPrefix(s.name, "tcp") {
			port = layers.UDPPort(p.tcp.DstPort)
		}
		want := []byte{100, 64, 9, 2}
		if strings.HasSuffix(s.name, "6") {
			src, want = p.ip6.SrcIP, s.b[8:24]
		}
		if port != 5001 || !bytes.Equal(src, want) {
			t.Errorf("%s: from %v to port %d", s.name, src, port)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, s := range samples(b) {
		measure := func(by string, fn func() bool) {
			b.Run(s.name+"/by="+by, func(b *testing.B) {
				b.SetBytes(int64(len(s.b)))
				b.ReportAllocs()
				for b.Loop() {
					if !fn() {
						b.Fatal("malformed")
					}
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "packets/s")
			})
		}
		p := newParser()
		measure("gopacket-parser", func() bool { return p.decode(s.b) == nil })
		first := layers.LayerTypeIPv4
		if s.b[0]>>4 == 6 {
			first = layers.LayerTypeIPv6
		}
		measure("gopacket-packet", func() bool {
			return gopacket.NewPacket(s.b, first, gopacket.NoCopy).TransportLayer() != nil
		})
	}
}
