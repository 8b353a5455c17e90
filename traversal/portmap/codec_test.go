package portmap

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// unhex reads bytes as people write them: with spaces, and comments from # to the end of a line.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	var digits strings.Builder
	for line := range strings.Lines(s) {
		line, _, _ = strings.Cut(line, "#")
		digits.WriteString(strings.Join(strings.Fields(line), ""))
	}
	b, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var someNonce = nonce{0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab}

func TestRequestBytes(t *testing.T) {
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{"PCP ANNOUNCE from an IPv4 host (RFC 6887 section 7.1)", appendPCPHeader(nil, pcpAnnounce, 0, netip.MustParseAddr("192.168.1.2")), `
			02 00 0000  00000000
			00000000 00000000 0000ffff c0a80102`},
		{"PCP MAP without a suggestion (section 11.1)", (&pcpMapRequest{
			client: netip.MustParseAddr("192.168.1.2"), nonce: someNonce, internal: 51820, lifetime: 2 * time.Hour,
		}).append(nil), `
			02 01 0000  00001c20
			00000000 00000000 0000ffff c0a80102  # client
			a0a1a2a3 a4a5a6a7 a8a9aaab           # nonce
			11 000000                            # UDP
			ca6c 0000                            # ports
			00000000 00000000 0000ffff 00000000  # any IPv4 address`},
		{"PCP MAP with a suggestion", (&pcpMapRequest{
			client: netip.MustParseAddr("192.168.1.2"), nonce: someNonce, internal: 51820, lifetime: time.Hour,
			external: netip.MustParseAddrPort("198.51.100.7:4000"),
		}).append(nil), `
			02 01 0000  00000e10
			00000000 00000000 0000ffff c0a80102
			a0a1a2a3 a4a5a6a7 a8a9aaab
			11 000000
			ca6c 0fa0
			00000000 00000000 0000ffff c6336407`},
		{"PCP MAP of an IPv6 pinhole", (&pcpMapRequest{
			client: netip.MustParseAddr("2001:db8::5"), nonce: someNonce, internal: 51820, lifetime: time.Hour,
		}).append(nil), `
			02 01 0000  00000e10
			20010db8 00000000 00000000 00000005
			a0a1a2a3 a4a5a6a7 a8a9aaab
			11 000000
			ca6c 0000
			00000000 00000000 00000000 00000000`},
		{"PCP MAP that deletes (section 15.1): lifetime 0", (&pcpMapRequest{
			client: netip.MustParseAddr("192.168.1.2"), nonce: someNonce, internal: 51820,
		}).append(nil), `
			02 01 0000  00000000
			00000000 00000000 0000ffff c0a80102
			a0a1a2a3 a4a5a6a7 a8a9aaab
			11 000000
			ca6c 0000
			00000000 00000000 0000ffff 00000000`},
		{"NAT-PMP external address (RFC 6886 section 3.2)", pmpAddressRequest(), `00 00`},
		{"NAT-PMP mapping (section 3.3)", pmpMapRequest(51820, 51821, 2*time.Hour), `00 01 0000 ca6c ca6d 00001c20`},
		{"NAT-PMP deletion (section 3.4)", pmpMapRequest(51820, 0, 0), `00 01 0000 ca6c 0000 00000000`},
	} {
		if want := unhex(t, c.want); !bytes.Equal(c.got, want) {
			t.Errorf("%s:\n got %x\nwant %x", c.name, c.got, want)
		}
	}
}

const pcpSuccess = `
	02 81 00 00  00000e10
	00000064 00000000 00000000 00000000
	a0a1a2a3 a4a5a6a7 a8a9aaab
	11 000000
	ca6c 0fa0
	00000000 00000000 0000ffff c6336407`

func TestPCPResponses(t *testing.T) {
	request := &pcpMapRequest{client: netip.MustParseAddr("192.168.1.2"), nonce: someNonce, internal: 51820}
	success := unhex(t, pcpSuccess)
	a, v := acceptPCP(success, func(a *pcpAnswer) bool { return a.answers(request) })
	if v != taken || a.err() != nil || a.lifetime != time.Hour || a.epoch != 100 || a.external != netip.MustParseAddrPort("198.51.100.7:4000") {
		t.Errorf("%+v, verdict %d", a, v)
	}
	for n := range success {
		if _, ok := parsePCP(success[:n]); ok {
			t.Errorf("the first %d bytes are taken for a response", n)
		}
	}
	changed := func(at int, to byte) []byte {
		b := bytes.Clone(success)
		b[at] = to
		return b
	}
	for _, c := range []struct {
		name string
		b    []byte
		want verdict
		code int
	}{
		{"a request is no response", changed(1, 1), malformed, 0},
		{"another nonce", changed(24, 0), mismatch, 0},
		{"another protocol", changed(36, 6), mismatch, 0},
		{"another internal port", changed(41, 0), mismatch, 0},
		{"another opcode", changed(1, 0x82), mismatch, 0},
		{"an option after the body", append(bytes.Clone(success), 1, 0, 0, 0), taken, 0},
		{"half an option", append(bytes.Clone(success), 1, 0), malformed, 0},
		{"more than 1100 bytes", append(bytes.Clone(success), make([]byte, 1048)...), malformed, 0},
		{"a refusal", changed(3, 12), taken, 12},
		{"a refusal with another nonce", append(changed(3, 12)[:24], make([]byte, 36)...), mismatch, 0},
		{"a refusal without a body", changed(3, 2)[:24], taken, 2},
		{"a success without a body", success[:24], malformed, 0},
		{"a NAT-PMP gateway that knows no PCP (RFC 6887 section 9)", unhex(t, `00 81 0001 00000064`), taken, 1},
		{"version 1 only", unhex(t, `01 81 00 01 00000000 00000064 00000000 00000000 00000000`), taken, 1},
		{"another version and no such result", unhex(t, `00 81 0000 00000064`), malformed, 0},
	} {
		a, v := acceptPCP(c.b, func(a *pcpAnswer) bool { return a.answers(request) })
		if v != c.want || v == taken && resultCode(a.err()) != c.code {
			t.Errorf("%s: verdict %d, %v", c.name, v, a.err())
		}
	}
}

func TestNATPMPResponses(t *testing.T) {
	for _, c := range []struct {
		name, b string
		want    pmpAnswer
		ok      bool
	}{
		{"address", `00 80 0000 00000064 c6336407`, pmpAnswer{epoch: 100, address: netip.MustParseAddr("198.51.100.7")}, true},
		{"mapping", `00 81 0000 00000064 ca6c 0fa0 00001c20`, pmpAnswer{opcode: 1, epoch: 100, internal: 51820, external: 4000, lifetime: 2 * time.Hour}, true},
		{"refusal, short", `00 81 0002 00000064`, pmpAnswer{opcode: 1, code: 2, epoch: 100}, true},
		{"network failure", `00 80 0003 00000064 00000000`, pmpAnswer{code: 3, epoch: 100}, true},
		{"a PCP server without NAT-PMP (RFC 6887 appendix A)", `02 80 00 01`, pmpAnswer{version: 2, code: 1}, true},
		{"a request", `00 00`, pmpAnswer{}, false},
		{"an address that is cut", `00 80 0000 00000064 c63364`, pmpAnswer{}, false},
		{"an address that is too long", `00 80 0000 00000064 c6336407 00`, pmpAnswer{}, false},
		{"a mapping that is cut", `00 81 0000 00000064 ca6c 0fa0 0000`, pmpAnswer{}, false},
		{"TCP, which nobody asked for", `00 82 0000 00000064 ca6c 0fa0 00001c20`, pmpAnswer{}, false},
		{"nothing", ``, pmpAnswer{}, false},
	} {
		got, ok := parsePMP(unhex(t, c.b))
		if ok != c.ok || ok && got != c.want {
			t.Errorf("%s: %+v %v", c.name, got, ok)
		}
	}
}

func TestAnnouncements(t *testing.T) {
	for _, c := range []struct {
		name, b string
		ok      bool
	}{
		{"NAT-PMP (RFC 6886 section 3.2.1)", `00 80 0000 00000001 c6336407`, true},
		{"PCP (RFC 6887 section 14.1)", `02 80 00 00 00000000 00000001 00000000 00000000 00000000`, true},
		{"a NAT-PMP mapping", `00 81 0000 00000064 ca6c 0fa0 00001c20`, false},
		{"a PCP mapping", pcpSuccess, false},
		{"a PCP refusal", `02 80 00 08 00000000 00000001 00000000 00000000 00000000`, false},
		{"a request", `02 00 0000 00000000 00000000 00000000 0000ffff c0a80102`, false},
	} {
		if _, ok := parseAnnouncement(unhex(t, c.b)); ok != c.ok {
			t.Errorf("%s: %v", c.name, ok)
		}
	}
}

func TestEpochs(t *testing.T) {
	start := time.Unix(1e9, 0)
	type seen struct {
		server uint32
		after  time.Duration
		lost   bool
	}
	for _, c := range []struct {
		name string
		pmp  bool
		list []seen
	}{
		{"PCP keeps time", false, []seen{{1000, 0, false}, {1010, 10 * time.Second, false}, {4610, time.Hour + 10*time.Second, false}}},
		{"PCP restarts", false, []seen{{1000, 0, false}, {0, 10 * time.Second, true}, {10, 20 * time.Second, false}}},
		{"PCP goes back by what reordering does", false, []seen{{1000, 0, false}, {999, 0, false}}},
		{"PCP goes back by more", false, []seen{{1000, 0, false}, {998, 0, true}}},
		{"PCP clock is 6 % slow", false, []seen{{0, 0, false}, {940, 1000 * time.Second, false}}},
		{"PCP stands still: it restarted, and the time since is as long as before", false, []seen{{1000, 0, false}, {1005, 1000 * time.Second, true}}},
		{"PCP runs ahead", false, []seen{{1000, 0, false}, {2000, 100 * time.Second, true}}},
		{"NAT-PMP keeps time", true, []seen{{1000, 0, false}, {1010, 10 * time.Second, false}}},
		{"NAT-PMP clock is 12 % slow", true, []seen{{1000, 0, false}, {1880, 1000 * time.Second, false}}},
		{"NAT-PMP restarts", true, []seen{{1000, 0, false}, {0, time.Second, true}}},
		{"NAT-PMP falls behind", true, []seen{{1000, 0, false}, {1872, 1000 * time.Second, true}}},
		{"NAT-PMP runs ahead, which it may", true, []seen{{1000, 0, false}, {5000, time.Second, false}}},
		{"no overflow", false, []seen{{1<<32 - 1, 0, false}, {0, time.Second, true}}},
	} {
		var e epoch
		for i, x := range c.list {
			f := e.pcp
			if c.pmp {
				f = e.pmp
			}
			if got := f(x.server, start.Add(x.after)); got != x.lost {
				t.Errorf("%s: number %d: lost %v", c.name, i, got)
			}
		}
	}
}

func TestExternalAddresses(t *testing.T) {
	local4, local6 := netip.MustParseAddr("192.168.1.2"), netip.MustParseAddr("2001:db8::2")
	for _, c := range []struct {
		addr              string
		local             netip.Addr
		plausible, double bool
	}{
		{"44.128.0.5", local4, true, false},
		{"198.51.100.7", local4, true, false},
		{"192.168.7.2", local4, true, true},
		{"10.0.0.1", local4, true, true},
		{"172.31.255.254", local4, true, true},
		{"172.32.0.1", local4, true, false},
		{"100.64.0.1", local4, true, true},
		{"100.127.255.255", local4, true, true},
		{"100.128.0.1", local4, true, false},
		{"169.254.3.4", local4, true, true},
		{"192.0.0.2", local4, true, true},
		{"0.0.0.0", local4, false, false},
		{"0.1.2.3", local4, false, false},
		{"127.0.0.1", local4, false, false},
		{"224.0.0.1", local4, false, false},
		{"255.255.255.255", local4, false, false},
		{"240.0.0.1", local4, false, false},
		{"2001:db8::2", local4, false, false},
		{"2001:db8::2", local6, true, false},
		{"fd00::2", local6, true, true},
		{"::", local6, false, false},
		{"::1", local6, false, false},
		{"44.128.0.5", local6, false, false},
	} {
		a := netip.MustParseAddr(c.addr)
		if got := plausible(a, c.local); got != c.plausible {
			t.Errorf("%v for %v: plausible %v", a, c.local, got)
		}
		if got := doubleNAT(a); c.plausible && got != c.double {
			t.Errorf("%v: double NAT %v", a, got)
		}
	}
	if plausible(netip.Addr{}, local4) {
		t.Error("no address is plausible")
	}
}
