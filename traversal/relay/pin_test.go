package relay

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"testing"
)

func TestParsePin(t *testing.T) {
	const zeros = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	for _, s := range []string{"sha256//" + zeros, "sha256-raw:" + strings.Repeat("0f", 32)} {
		p, err := ParsePin(s)
		if err != nil || p.String() != s || p.IsZero() {
			t.Errorf("%s: %v %v", s, p, err)
		}
	}
	upper, err := ParsePin("sha256-raw:" + strings.Repeat("0F", 32))
	if err != nil || upper.String() != "sha256-raw:"+strings.Repeat("0f", 32) {
		t.Errorf("upper case: %v %v", upper, err)
	}
	for _, s := range []string{
		"", zeros, "sha256//", "sha256//" + zeros[:43], "sha256//" + zeros + "A", "sha256//AAA\nA" + zeros[4:], "sha256//" + zeros[:42] + "B=",
		"sha256-raw:", "sha256-raw:" + strings.Repeat("0f", 31), "sha256-raw:" + strings.Repeat("0f", 33), "sha256-raw:" + zeros,
		"sha1//" + zeros, " sha256//" + zeros, "sha256//" + zeros + ";sha256//" + zeros,
	} {
		if p, err := ParsePin(s); err == nil {
			t.Errorf("%q is a pin: %v", s, p)
		}
	}
}

func TestPinMatches(t *testing.T) {
	one, other := newCertificate(t, "relay.example"), newCertificate(t, "relay.example")
	leaf, err := ParsePin("sha256-raw:" + hexOf(one.Leaf.Raw))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ParsePin("sha256//" + base64Of(one.Leaf.RawSubjectPublicKeyInfo))
	if err != nil || key != PinOf(one.Leaf) {
		t.Fatal(key, PinOf(one.Leaf), err)
	}
	for _, p := range []Pin{leaf, key} {
		if !p.Matches(one.Leaf) || p.Matches(other.Leaf) {
			t.Errorf("%v does not tell the certificates apart", p)
		}
	}
	if (Pin{}).Matches(one.Leaf) {
		t.Error("the zero pin matches")
	}
	if err := checkPins([]Pin{PinOf(other.Leaf), leaf}, []*x509.Certificate{one.Leaf, other.Leaf}); err != nil {
		t.Errorf("the second of two pins: %v", err)
	}
	if err := checkPins([]Pin{leaf}, []*x509.Certificate{other.Leaf, one.Leaf}); err == nil || !strings.Contains(err.Error(), PinOf(other.Leaf).String()) {
		t.Errorf("a pin of a certificate behind the leaf: %v", err)
	}
	if err := checkPins([]Pin{leaf}, nil); err == nil {
		t.Error("no certificate at all is fine")
	}
}

func hexOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func base64Of(b []byte) string {
	sum := sha256.Sum256(b)
	return base64.StdEncoding.EncodeToString(sum[:])
}

func FuzzPin(f *testing.F) {
	f.Add("sha256//AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")
	f.Add("sha256-raw:" + strings.Repeat("0f", 32))
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePin(s)
		if err != nil {
			return
		}
		again, err := ParsePin(p.String())
		if err != nil || again != p || !strings.EqualFold(p.String(), s) {
			t.Fatalf("%q: %v, then %v %v", s, p, again, err)
		}
	})
}
