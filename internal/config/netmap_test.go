package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const netmapBase = `[Interface]
Name = exit
Address = 10.151.6.1/24
PrivateKey = OFAkaqjEFNFoOwxPayblPQPvfyJjhpJ9pYRPRVeA5kg=
[Peer]
Name = laptop
PublicKey = zjLCloWioqz6amI2mu6GP1W+YWpI0YuBthtDst5TRTU=
AllowedIPs = 10.151.6.2/32, 10.9.0.0/16
`

func loadNetmap(t *testing.T, lines string) (*Config, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "culvert.conf")
	if err := os.WriteFile(file, []byte(netmapBase+lines), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := Load(file, testOptions())
	if err != nil {
		err = errors.New(strings.ReplaceAll(err.Error(), filepath.Dir(file)+"/", ""))
	}
	return cfg, err
}

func TestNetmapSections(t *testing.T) {
	cfg, err := loadNetmap(t, "[Netmap]\nFrom = 10.1.0.0/24\nTo = 192.168.1.77/24\n[netmap]\nto=fd00:1::/64\nfrom=fd00:a::/64\n")
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Netmap) != 2 || cfg.Netmap[0].From.String() != "10.1.0.0/24" || cfg.Netmap[0].To.String() != "192.168.1.0/24" ||
		cfg.Netmap[1].From.String() != "fd00:a::/64" || cfg.Netmap[1].To.String() != "fd00:1::/64" {
		t.Errorf("got %v", cfg.Netmap)
	}
}

func TestFaultyNetmaps(t *testing.T) {
	for lines, want := range map[string]string{
		"[Netmap]\nFrom = 10.1.0.0/24":                                                                         "culvert.conf:9: [Netmap] needs From and To, such as From = 10.1.0.0/24 and To = 192.168.1.0/24",
		"[Netmap]\nFrom = 10.1.0.0/24\nTo = 192.168.0.0/16":                                                    "culvert.conf:9: [Netmap]: 10.1.0.0/24 and 192.168.0.0/16 differ in length: translation is one to one",
		"[Netmap]\nFrom = 10.1.0.0/24\nTo = fd00::/24":                                                         "culvert.conf:9: [Netmap]: 10.1.0.0/24 and fd00::/24 are of different families",
		"[Netmap]\nFrom = ten\nTo = 192.168.1.0/24":                                                            `culvert.conf:10: From: "ten" is not an address or prefix such as 10.0.0.2/32 or fd00::2/128`,
		"[Netmap]\nFrom = 0.0.0.0/0\nTo = 0.0.0.0/0":                                                           "culvert.conf:10: From: \"0.0.0.0/0\" is the whole address space, which cannot be translated one to one\nculvert.conf:11: To: \"0.0.0.0/0\" is the whole address space, which cannot be translated one to one",
		"[Netmap]\nFrom = 10.151.0.0/16\nTo = 192.168.0.0/16":                                                  "culvert.conf:10: From: 10.151.0.0/16 holds this node's own address 10.151.6.1\nculvert.conf:10: From: 10.151.0.0/16 overlaps 10.151.6.2/32 of peer laptop (culvert.conf:5)",
		"[Netmap]\nFrom = 10.1.0.0/16\nTo = 10.151.0.0/16":                                                     "culvert.conf:11: To: 10.151.0.0/16 holds this node's own address 10.151.6.1",
		"[Netmap]\nFrom = 10.9.4.0/24\nTo = 192.168.1.0/24":                                                    "culvert.conf:10: From: 10.9.4.0/24 overlaps 10.9.0.0/16 of peer laptop (culvert.conf:5)",
		"[Netmap]\nFrom = 10.1.0.0/24\nTo = 192.168.1.0/24\n[Netmap]\nFrom = 10.1.0.0/25\nTo = 192.168.2.0/25": "culvert.conf:13: From: 10.1.0.0/25 overlaps 10.1.0.0/24 on line 10",
	} {
		if _, err := loadNetmap(t, lines); err == nil || err.Error() != want {
			t.Errorf("%q:\ngot  %v\nwant %s", lines, err, want)
		}
	}
}
