package wgkey

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// The pair is from wg(8): `echo KEY | wg pubkey`.
const (
	knownPrivate = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
	knownPublic  = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="
)

func TestPublicOfKnownPrivate(t *testing.T) {
	k, err := ParsePrivate(knownPrivate)
	if err != nil {
		t.Fatal(err)
	}
	if got := k.Public().String(); got != knownPublic {
		t.Errorf("public key %s, want %s", got, knownPublic)
	}
	if k.Reveal() != knownPrivate {
		t.Error("Reveal does not round-trip")
	}
}

func TestParseRefuses(t *testing.T) {
	for _, s := range []string{"", "x", knownPublic[:43], knownPublic + "A", strings.Repeat("A", 44), "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk"} {
		if _, err := ParsePublic(s); err == nil {
			t.Errorf("ParsePublic(%q) accepted", s)
		} else if s != "" && len(s) > 2 && strings.Contains(err.Error(), s) {
			t.Errorf("the error repeats the key text: %v", err)
		}
	}
}

func TestSecretsNeverPrint(t *testing.T) {
	k, _ := ParsePrivate(knownPrivate)
	psk, _ := ParsePreshared(knownPrivate)
	type holder struct {
		K Private
		P *Preshared
	}
	h := holder{k, &psk}
	js, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", k, "psk", psk, "h", h)
	out := fmt.Sprintf("%v %+v %#v %s %q %x %d %v %s", k, h, k, k, k, k, k, psk, js) + log.String()
	for _, leak := range []string{knownPrivate, k.RevealHex(), knownPrivate[:12], "200 9 243", "0xc8, 0x9"} {
		if strings.Contains(out, leak) {
			t.Errorf("private key printed (%q) in %s", leak, out)
		}
	}
}
