package config

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const filterBase = `[Interface]
Name = exit
Address = 10.151.6.1/24
PrivateKey = OFAkaqjEFNFoOwxPayblPQPvfyJjhpJ9pYRPRVeA5kg=
[Peer]
Name = laptop
PublicKey = zjLCloWioqz6amI2mu6GP1W+YWpI0YuBthtDst5TRTU=
AllowedIPs = 10.151.6.2/32
[Filter]
`

// loadFilter loads a configuration whose section [Filter], from line 10 on, has the given lines.
func loadFilter(t *testing.T, lines string) (*Config, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "culvert.conf")
	if err := os.WriteFile(file, []byte(filterBase+lines), 0o600); err != nil {
		t.Fatal(err)
	}
	o := testOptions()
	env := map[string]string{"RULE": "accept from laptop to 10.0.0.0/8", "BAD": "accept from hunter2 to *", "WORSE": "hunter2"}
	o.LookupEnv = func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	cfg, err := Load(file, o)
	return cfg, trimDir(err, filepath.Dir(file))
}

// trimDir shortens the paths in Errors to the names of the files.
func trimDir(err error, dir string) error {
	list, ok := err.(Errors)
	if !ok {
		return err
	}
	for i := range list {
		list[i].File = strings.TrimPrefix(list[i].File, dir+"/")
	}
	return list
}

func TestFaultyRulesShowTheirLineWithAMark(t *testing.T) {
	key := "OFAkaqjEFNFoOwxPayblPQPvfyJjhpJ9pYRPRVeA5kg="
	for lines, want := range map[string]string{
		"Rule = accept from latpop to lan tcp/22": `culvert.conf:10: unknown peer "latpop" (did you mean "laptop"?)
  Rule = accept from latpop to lan tcp/22
                     ^~~~~~`,
		"rule=accept from * to warehouse\nSet = warehouses 10.0.0.1": `culvert.conf:10: unknown set or peer "warehouse" (did you mean "warehouses"?)
  Rule = accept from * to warehouse
                          ^~~~~~~~~`,
		"Set = db 10.0.0.1\nRule = accept from db to *": `culvert.conf:11: "db" is a set, which can only be a destination
  Rule = accept from db to *
                     ^~`,
		"Rule = accept from nobody to nowhere": `culvert.conf:10: unknown peer "nobody"
  Rule = accept from nobody to nowhere
                     ^~~~~~
culvert.conf:10: unknown set or peer "nowhere"
  Rule = accept from nobody to nowhere
                               ^~~~~~~`,
		"Rule = accept from * to * tcp/22,x  # ssh": `culvert.conf:10: Rule: "x" is neither a port (1 to 65535) nor a range such as 8000-8099
  Rule = accept from * to * tcp/22,x
                                   ^`,
		"Rule = accept": `culvert.conf:10: Rule: "from" is missing
  Rule = accept
               ^`,
		"Set = db 10.0.0.1 home": `culvert.conf:10: Set: "home" is neither an address nor a prefix
  Set = db 10.0.0.1 home
                    ^~~~`,
		"Rule = drop from * to * tcp via host": `culvert.conf:10: Rule: drop sends nothing anywhere: "via" belongs to accept
  Rule = drop from * to * tcp via host
                              ^~~`,
		"Rule = accept from * to internet via upstream": `culvert.conf:10: Rule: via upstream needs a section [Upstream], and there is none
  Rule = accept from * to internet via upstream
                                       ^~~~~~~~`,
		"Set = db 10.0.0.1\nSet = DB 10.0.0.2":    `culvert.conf:11: Set: there is a set named db already`,
		"Set = laptop 10.0.0.1":                   `culvert.conf:10: Set: there is a peer named laptop; give the set another name`,
		"Rule = accept from " + key + " to *":     `culvert.conf:10: Rule: this line does not belong here: it looks like a key`,
		"Rule = accept from höme to *":            `culvert.conf:10: Rule: "höme" is not a name: want 1 to 63 of a-z, 0-9 and -, with no - at either end`,
		"Rule = $BAD":                             `culvert.conf:10: Rule: the value of $BAD names a peer or set that does not exist`,
		"Rule = ${WORSE}":                         `culvert.conf:10: Rule: the value of $WORSE is not a valid one`,
		"Rules = accept from * to *":              `culvert.conf:10: unknown key Rules in [Filter]; did you mean Rule?`,
		"[Peer]\nPublicKey = x\nRule = from * to": "",
	} {
		_, err := loadFilter(t, lines)
		if want == "" {
			if err == nil || !strings.Contains(err.Error(), "Rule belongs in [Filter], not in [Peer]") {
				t.Errorf("%s: got %v", lines, err)
			}
			continue
		}
		if err == nil || err.Error() != want {
			t.Errorf("%s: got\n%v\nwant\n%s", lines, err, want)
		}
	}
}

func TestRulesKeepTheirPlace(t *testing.T) {
	cfg, err := loadFilter(t, "Rule = reject  from * to db\nRule = $RULE\nSet = db 10.0.0.5")
	if err != nil {
		t.Fatal(err)
	}
	r, s := cfg.Filter.Rules, cfg.Filter.Sets
	if len(r) != 2 || r[0].Line != 10 || r[0].Text != "reject  from * to db" || r[1].Line != 11 || r[1].Text != "$RULE" || r[1].File != cfg.File {
		t.Errorf("got %+v", r)
	}
	if len(s) != 1 || s[0].Line != 12 || s[0].File != cfg.File {
		t.Errorf("got %+v", s)
	}
}

func TestRulesWithoutEffectAreWarnedOf(t *testing.T) {
	cfg, err := loadFilter(t, `Rule = reject from * to 10.0.0.0/8 tcp
Rule = accept from laptop to db tcp/5432
Set = db 10.0.0.5
Set = unused 10.0.0.6
Rule = accept from laptop to internet
Rule = accept from laptop to self udp/53
Rule = reject from * to 127.0.0.1
`)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range cfg.Warnings {
		if w.File != cfg.File {
			t.Errorf("%s: about another file", w)
		}
		message, _, _ := strings.Cut(w.Message, ": the ")
		got = append(got, fmt.Sprintf("%d: %s", w.Line, message))
	}
	want := []string{
		"11: Rule: has no effect: what it names is denied before rules are asked (no-routing",
		"13: Set: no rule names the set unused",
		"14: Rule: has no effect: what it names is denied before rules are asked (no-routing",
		"16: Rule: has no effect: what it names is denied before rules are asked (loopback",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestRulesThatNameTranslatedAddressesAreWarnedOf(t *testing.T) {
	cfg, err := loadFilter(t, `Rule = reject from laptop to 10.99.0.7
Rule = reject from laptop to 192.168.1.7
Rule = reject from laptop to 10.98.0.0/15
Rule = reject from laptop to web tcp/80
Set = web 198.51.100.7 10.99.0.8
[Netmap]
From = 10.99.0.0/24
To = 192.168.1.0/24
`)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range cfg.Warnings {
		got = append(got, fmt.Sprintf("%d: %s", w.Line, w.Message))
	}
	const translated = ": [Netmap] translates 10.99.0.0/24 to 192.168.1.0/24 before rules are asked: name addresses of the latter"
	if want := []string{"10: Rule" + translated, "14: Set" + translated}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Every example of rules in the documentation loads.
func TestDocumentedRulesLoad(t *testing.T) {
	text, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := strings.Split(string(text), "```ini\n[Filter]\n")[1:]
	if len(examples) < 3 {
		t.Fatalf("%d examples, want three at least", len(examples))
	}
	const phone = "[Peer]\nName = phone\nPublicKey = qb5xlpl+eB/rzKG9gP2c1Sr/K9gBlA7a0s8mTyxZeWQ=\nAllowedIPs = 10.151.6.3/32\n"
	for _, e := range examples {
		lines, _, _ := strings.Cut(e, "```")
		cfg, err := loadFilter(t, lines+phone)
		if err != nil || len(cfg.Filter.Rules) != strings.Count(lines, "Rule =") {
			t.Errorf("%s: %v", lines, err)
		}
	}
}
