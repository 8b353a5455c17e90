package main

import (
	"strings"
	"testing"

	"rsc.io/qr"
)

// The printed blocks, read back, are the symbol and its margin.
func TestQRBlocksAreTheModules(t *testing.T) {
	for _, text := range []string{"x", strings.Repeat("WireGuard ", 40)} {
		code, err := qr.Encode(text, qr.L)
		if err != nil {
			t.Fatal(err)
		}
		for _, colour := range []bool{false, true} {
			var b strings.Builder
			if err := writeQR(&b, text, colour); err != nil {
				t.Fatal(err)
			}
			side := code.Size + 2*quietZone
			light := readBlocks(t, b.String(), colour)
			if len(light) != side+side%2 { // an odd last row is half a character, the other half is background
				t.Fatalf("got %d rows, want %d", len(light), side+side%2)
			}
			for y := range light {
				if len(light[y]) != side {
					t.Fatalf("row %d: got %d columns, want %d", y, len(light[y]), side)
				}
				for x := range light[y] {
					want := y < side && !code.Black(x-quietZone, y-quietZone)
					if light[y][x] != want {
						t.Fatalf("module %d,%d: got light %v, want %v", x, y, light[y][x], want)
					}
				}
			}
		}
	}
	if err := writeQR(new(strings.Builder), strings.Repeat("x", 5000), false); err == nil {
		t.Error("no error for a text that fits no symbol")
	}
}

// readBlocks turns printed half blocks into rows of modules; true is light.
func readBlocks(t *testing.T, printed string, colour bool) [][]bool {
	t.Helper()
	var rows [][]bool
	for line := range strings.Lines(printed) {
		line = strings.TrimSuffix(line, "\n")
		if colour {
			var ok bool
			if line, ok = strings.CutPrefix(line, "\x1b[38;2;255;255;255;48;2;0;0;0m"); !ok {
				t.Fatalf("line without colours: %q", line)
			}
			line = strings.TrimSuffix(line, "\x1b[0m")
		}
		var upper, lower []bool
		for _, r := range line {
			halves, ok := map[rune][2]bool{' ': {}, '▀': {true, false}, '▄': {false, true}, '█': {true, true}}[r]
			if !ok {
				t.Fatalf("unexpected %q", r)
			}
			upper, lower = append(upper, halves[0]), append(lower, halves[1])
		}
		rows = append(rows, upper, lower)
	}
	return rows
}

// A device's file must fit a terminal of 80 columns with the longest addresses there are.
func TestQRCodeOfADeviceFitsATerminal(t *testing.T) {
	text := `[Interface]
PrivateKey = WNRzWjQ7CEpXoEDFZ3TMaiaqeVbW4GSqXKmy7XGWbmM=
Address = 100.127.255.254/32, fd12:3456:789a:bcde::ffff/128
DNS = 100.127.255.1, fd12:3456:789a:bcde::1
[Peer]
PublicKey = tenWwkouosPtk7skeC+IFv/HSdO5gc4QYkELrvQgqDw=
PresharedKey = k4T7VvySEAHJzLGe1lA492rsSdIhvtedbbIDgw/Ksh8=
AllowedIPs = 0.0.0.0/0, ::/0
Endpoint = [2001:db8:1234:5678:9abc:def0:1234:5678]:51820
PersistentKeepalive = 25
`
	var b strings.Builder
	if err := writeQR(&b, text, false); err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(b.String(), "\n")
	if columns := strings.Count(first, "█"); columns > 80 || columns < 25 {
		t.Errorf("got %d columns", columns)
	}
}
