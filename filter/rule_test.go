package filter

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/packet"
)

func mustRule(t testing.TB, text string) Rule {
	t.Helper()
	r, err := ParseRule(text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return r
}

// withRules returns the fixture with rules, and with the sets that tests use. Rule i stands on line i+1.
func withRules(t testing.TB, rules ...string) Config {
	t.Helper()
	cfg := fixture()
	for i, text := range rules {
		r := mustRule(t, text)
		r.File, r.Line = "test.conf", i+1
		cfg.Rules = append(cfg.Rules, r)
	}
	for _, text := range []string{"db 10.0.0.5 10.0.0.6 fd00::/64 2001:db8:5::/48", "mixed 8.8.0.0/16 10.0.0.0/8"} {
		s, err := ParseSet(text)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Sets = append(cfg.Sets, s)
	}
	return cfg
}

func TestRuleGrammar(t *testing.T) {
	prefix := func(s string) Term { return Term{Kind: TermPrefix, Prefix: netip.MustParsePrefix(s)} }
	name := func(s string) Term { return Term{Kind: TermName, Name: s} }
	for text, want := range map[string]Rule{
		"accept from * to *":                      {Action: Accept},
		"reject from * to *":                      {Action: Reject},
		"drop from * to *":                        {Action: Drop},
		"drop log from * to *":                    {Action: Drop, Log: true},
		"DROP LOG FROM * TO SELF TCP":             {Action: Drop, Log: true, To: Term{Kind: TermSelf}, Proto: packet.ProtoTCP},
		"accept\tfrom  Laptop to *":               {Action: Accept, From: name("laptop")},
		"accept from 10.0.0.7 to *":               {Action: Accept, From: prefix("10.0.0.7/32")},
		"accept from 10.0.0.7/24 to *":            {Action: Accept, From: prefix("10.0.0.0/24")},
		"accept from fd00::7 to *":                {Action: Accept, From: prefix("fd00::7/128")},
		"accept from * to fd00::/64":              {Action: Accept, To: prefix("fd00::/64")},
		"accept from * to 192.168.1.0/24":         {Action: Accept, To: prefix("192.168.1.0/24")},
		"accept from * to self":                   {Action: Accept, To: Term{Kind: TermSelf}},
		"accept from * to lan":                    {Action: Accept, To: Term{Kind: TermLAN}},
		"accept from * to internet":               {Action: Accept, To: Term{Kind: TermInternet}},
		"accept from log to log":                  {Action: Accept, From: name("log"), To: name("log")},
		"accept from from to to":                  {Action: Accept, From: name("from"), To: name("to")},
		"accept from * to * tcp":                  {Action: Accept, Proto: packet.ProtoTCP},
		"accept from * to * udp/53":               {Action: Accept, Proto: packet.ProtoUDP, Ports: []Ports{{53, 53}}},
		"accept from * to * tcp/22,443,8000-8099": {Action: Accept, Proto: packet.ProtoTCP, Ports: []Ports{{22, 22}, {443, 443}, {8000, 8099}}},
		"accept from * to * 6/1-65535":            {Action: Accept, Proto: packet.ProtoTCP, Ports: []Ports{{1, 65535}}},
		"accept from * to * 47":                   {Action: Accept, Proto: 47},
		"accept from * to * icmp":                 {Action: Accept, Proto: ProtoICMP},
		"accept from * to * icmp echo-request":    {Action: Accept, Proto: ProtoICMP},
		"accept from * to * icmp 8":               {Action: Accept, Proto: packet.ProtoICMPv4},
		"accept from * to * via host":             {Action: Accept, Via: ViaHost},
		"accept from * to * icmp Via Upstream":    {Action: Accept, Proto: ProtoICMP, Via: ViaUpstream},
		"accept from * to * icmp 8 via host":      {Action: Accept, Proto: packet.ProtoICMPv4, Via: ViaHost},
		"accept from via to via udp/53 via host":  {Action: Accept, From: name("via"), To: name("via"), Proto: packet.ProtoUDP, Ports: []Ports{{53, 53}}, Via: ViaHost},
		"accept from * to * icmp 128":             {Action: Accept, Proto: packet.ProtoICMPv6},
	} {
		got, err := ParseRule(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		want.Text = text
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", text, got, want)
		}
		again := mustRule(t, got.String())
		if again.Text = text; !reflect.DeepEqual(again, got) {
			t.Errorf("%s: %q reads back as %+v", text, got.String(), again)
		}
	}
}

// Each row is a rule, and below it marks under the word that is wrong.
func TestRuleFaultsPointAtTheWord(t *testing.T) {
	for _, row := range [][3]string{
		{"acept from * to *",
			"^^^^^", `unknown action "acept": want accept, reject or drop`},
		{"",
			"", "the rule is empty"},
		{"accept to * from *",
			"       ^^", `"to" stands where "from" belongs`},
		{"accept log",
			"          ", `"from" is missing`},
		{"accept from",
			"           ", "the source is missing"},
		{"accept from * to",
			"                ", "the destination is missing"},
		{"accept from lan to *",
			"            ^^^", `"lan" cannot be a source: want a peer, an address, a prefix or *`},
		{"accept from 10.0.0.300 to *",
			"            ^^^^^^^^^^", `"10.0.0.300" is neither an address nor a prefix`},
		{"accept from ::ffff:10.0.0.1 to *",
			"            ^^^^^^^^^^^^^^^", `"::ffff:10.0.0.1" is an IPv4-mapped IPv6 address: write it as IPv4`},
		{"accept from fe80::1%eth0 to *",
			"            ^^^^^^^^^^^^", `"fe80::1%eth0" is neither an address nor a prefix`},
		{"accept from * to my_db",
			"                 ^^^^^", `"my_db" is not a name: want 1 to 63 of a-z, 0-9 and -, with no - at either end`},
		{"accept from * to * sctp/22",
			"                   ^^^^", `"sctp" is not a protocol: want tcp, udp, icmp or a number from 1 to 255`},
		{"accept from * to * 256",
			"                   ^^^", `"256" is not a protocol: want tcp, udp, icmp or a number from 1 to 255`},
		{"accept from * to * 47/22",
			"                   ^^^^^", "protocol 47 has no ports"},
		{"accept from * to * icmp/8",
			"                   ^^^^^^", "icmp has no ports"},
		{"accept from * to * icmp redirect",
			"                        ^^^^^^^^", `ICMP type "redirect" cannot be filtered: echo-request alone begins a flow; replies and errors belong to one, and no other type passes at all`},
		{"accept from * to * tcp/22,70000",
			"                          ^^^^^", `"70000" is neither a port (1 to 65535) nor a range such as 8000-8099`},
		{"accept from * to * tcp/0",
			"                       ^", `"0" is neither a port (1 to 65535) nor a range such as 8000-8099`},
		{"accept from * to * tcp/22,",
			"                          ", `"" is neither a port (1 to 65535) nor a range such as 8000-8099`},
		{"accept from * to * tcp/9-8",
			"                       ^^^", `the range "9-8" ends before it begins`},
		{"accept from * to * tcp/22, 443",
			"                          ", `"" is neither a port (1 to 65535) nor a range such as 8000-8099`},
		{"accept from * to * tcp/22 443",
			"                          ^^^", `unexpected "443" behind the end of the rule`},
		{"reject from * to * via host",
			"                   ^^^", `reject sends nothing anywhere: "via" belongs to accept`},
		{"drop from * to * tcp/22 via upstream",
			"                        ^^^", `drop sends nothing anywhere: "via" belongs to accept`},
		{"accept from * to * via",
			"                      ", `host or upstream is missing behind "via"`},
		{"accept from * to * via uplink tcp",
			"                       ^^^^^^", `"uplink" is not a way out: want host or upstream`},
		{"accept from * to * via host tcp",
			"                            ^^^", `unexpected "tcp" behind the end of the rule`},
	} {
		_, err := ParseRule(row[0])
		var f *Fault
		if !errors.As(err, &f) {
			t.Errorf("%s: got error %v, want a fault", row[0], err)
			continue
		}
		mark := strings.Repeat(" ", f.At) + strings.Repeat("^", f.Len)
		if (f.Len > 0 || f.At < len(row[0])) && strings.TrimRight(mark, " ") != strings.TrimRight(row[1], " ") || f.Message != row[2] {
			t.Errorf("got\n%s\n%s %s\nwant\n%s %s", row[0], mark, f.Message, row[1], row[2])
		}
	}
}

func TestSetGrammar(t *testing.T) {
	s, err := ParseSet("DB 10.0.0.5 10.1.2.3/16 fd00::/64")
	if err != nil || s.String() != "db 10.0.0.5 10.1.0.0/16 fd00::/64" {
		t.Errorf("got %s, %v", s.String(), err)
	}
	for text, want := range map[string]string{
		"":                 "the set is empty: want a name and addresses or prefixes",
		"db":               "the set db is empty: want addresses or prefixes behind its name",
		"lan 10.0.0.1":     `"lan" has a meaning of its own and cannot name a set`,
		"10.0.0.1":         `"10.0.0.1" is not a name: want 1 to 63 of a-z, 0-9 and -, with no - at either end`,
		"db 10.0.0.1 home": `"home" is neither an address nor a prefix`,
	} {
		if _, err := ParseSet(text); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}

func TestSpansFindTheEnds(t *testing.T) {
	for _, text := range []string{"accept from laptop to db", "drop  log from laptop to\tdb tcp/22"} {
		r := mustRule(t, text)
		from, to := r.Spans()
		if via := r.ViaSpan(); via != (Span{}) {
			t.Errorf("%s: a way out at %v", text, via)
		}
		if a, b := text[from.At:from.At+from.Len], text[to.At:to.At+to.Len]; a != "laptop" || b != "db" {
			t.Errorf("%s: got %q and %q", text, a, b)
		}
	}
}

func TestViaSpanFindsTheWay(t *testing.T) {
	r := mustRule(t, "accept from * to *  via  upstream ")
	if s := r.ViaSpan(); r.Text[s.At:s.At+s.Len] != "upstream" {
		t.Errorf("got %v", s)
	}
}

// No line makes the parser panic, a fault lies within its line, and what is understood is written and read again.
func FuzzParseRule(f *testing.F) {
	for _, s := range []string{"accept log from laptop to 10.0.0.0/8 tcp/22,443,8000-8099", "drop from fd00::1 to lan icmp echo-request", "reject from * to * 47", "accept from", "drop from \xff to ", "reject from * to * udp/1-", "accept from * to * icmp via upstream", "drop from * to * via"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRule(text)
		var fault *Fault
		if errors.As(err, &fault) && (fault.At < 0 || fault.Len < 0 || fault.At+fault.Len > len(text) || strings.Contains(fault.Message, "\n")) {
			t.Fatalf("%q: the fault %+v is not within its line", text, fault)
		}
		if err != nil {
			return
		}
		again, err := ParseRule(r.String())
		if err != nil {
			t.Fatalf("%q: written as %q: %v", text, r.String(), err)
		}
		again.Text = r.Text
		if !reflect.DeepEqual(r, again) {
			t.Fatalf("%q: %+v, read back %+v", text, r, again)
		}
	})
}
