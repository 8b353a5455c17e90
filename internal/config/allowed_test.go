package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"culvert.dev/culvert/internal/wgkey"
)

const peerKey3 = "zjLCloWioqz6amI2mu6GP1W+YWpI0YuBthtDst5TRTU="

func TestAllowFiles(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []string // "LINE KEY NAME"
		err        string   // without the file's name
	}{
		{name: "nothing", text: ""},
		{name: "comments alone", text: "# none yet\n\n  ; nor here\n"},
		{name: "keys with and without names", text: peerKey1 + "\n\t" + peerKey2 + "  Phone  # hers\n", want: []string{"1 " + peerKey1, "2 " + peerKey2 + " phone"}},
		{name: "Windows", text: "\ufeff" + peerKey1 + " a\r\n" + peerKey2 + "\r\n", want: []string{"1 " + peerKey1 + " a", "2 " + peerKey2}},
		{name: "no end of line", text: peerKey1, want: []string{"1 " + peerKey1}},
		{name: "a key twice is there once", text: peerKey1 + " a\n" + peerKey1 + " b\n", want: []string{"1 " + peerKey1 + " a"}},
		{name: "a name twice", text: peerKey1 + " a\n" + peerKey2 + " a\n", want: []string{"1 " + peerKey1 + " a", "2 " + peerKey2 + " a"}},
		{name: "a bad line admits nobody", text: peerKey1 + "\nlaptop\n", err: ":2: not a WireGuard key: want 32 bytes in base64 (44 characters)"},
		{name: "no wildcard", text: "*\n", err: ":1: not a WireGuard key: want 32 bytes in base64 (44 characters)"},
		{name: "the zero key", text: "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n", err: ":1: the key is all zero"},
		{name: "a bad name", text: peerKey1 + " my_laptop\n", err: ":1: \"my_laptop\" is not a name: want 1 to 63 of a-z, 0-9 and -, with no - at either end"},
		{name: "two names", text: peerKey1 + " my laptop\n", err: ":1: want a public key, and behind it a name if it is to have one: KEY laptop"},
		{name: "two keys on a line", text: peerKey1 + " " + peerKey2 + "\n",
			err: ":1: (hidden, looks like a key) is not a name: want 1 to 63 of a-z, 0-9 and -, with no - at either end"},
		{name: "a comment must stand apart", text: peerKey1 + "#x\n", err: ":1: not a WireGuard key: want 32 bytes in base64 (44 characters)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(put(t, map[string]string{"allowed.keys": tt.text}), "allowed.keys")
			list, err := ParseAllowed(file)
			if tt.err != "" {
				if err == nil || err.Error() != file+tt.err || list != nil {
					t.Errorf("got %v, %v; want the error %s%s", list, err, file, tt.err)
				}
				return
			}
			var got []string
			for _, a := range list {
				got = append(got, fmt.Sprintf("%d %s", a.Line, a))
				if a.File != file {
					t.Errorf("got file %s", a.File)
				}
			}
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
	if _, err := ParseAllowed(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent file: got %v", err)
	}
}

// Thousands of keys are no larger than a file may be, and a file of another kind does not fill the screen.
func TestLargeAllowFiles(t *testing.T) {
	var b strings.Builder
	for i := range 30_000 {
		fmt.Fprintf(&b, "%s\n", wgkey.Public{1, byte(i), byte(i >> 8)})
	}
	dir := put(t, map[string]string{"many": b.String(), "other": strings.Repeat("GIF89a\n", 1000)})
	if list, err := ParseAllowed(filepath.Join(dir, "many")); err != nil || len(list) != 30_000 {
		t.Errorf("got %d keys, %v", len(list), err)
	}
	_, err := ParseAllowed(filepath.Join(dir, "other"))
	var faults Errors
	if !errors.As(err, &faults) || len(faults) != mostFaults {
		t.Errorf("got %d faults", len(faults))
	}
}

func TestAllowFileIsEdited(t *testing.T) {
	const before = "# friends\r\n" + peerKey1 + " laptop # since May\n\n" + peerKey2
	key1, key2, key3 := mustPublic(t, peerKey1), mustPublic(t, peerKey2), mustPublic(t, peerKey3)
	add := func(key wgkey.Public, name string) func(string) (bool, error) {
		return func(file string) (bool, error) { return AddAllowed(file, key, name) }
	}
	remove := func(key wgkey.Public) func(string) (bool, error) {
		return func(file string) (bool, error) { return RemoveAllowed(file, key) }
	}
	for _, tt := range []struct {
		name, before string
		edit         func(file string) (bool, error)
		after        string
	}{
		{"a new key", before, add(key3, ""), before + "\n" + peerKey3 + "\n"},
		{"a new key with a name", before, add(key3, "Printer"), before + "\n" + peerKey3 + " printer\n"},
		{"a key that is there", before, add(key1, ""), before},
		{"a key that is there by that name", before, add(key1, "laptop"), before},
		{"another name keeps the comment", before, add(key1, "desk"), strings.Replace(before, "laptop", "desk", 1)},
		{"a first name keeps the end of the line", before + "\r\n", add(key2, "phone"), before + " phone\r\n"},
		{"a key goes with its line", before, remove(key1), "# friends\r\n\n" + peerKey2},
		{"the last line", before, remove(key2), "# friends\r\n" + peerKey1 + " laptop # since May\n\n"},
		{"a key that is not there", before, remove(key3), before},
		{"every line of a key", peerKey1 + " a\n" + peerKey2 + "\n" + peerKey1 + " b\n", remove(key1), peerKey2 + "\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(put(t, map[string]string{"allowed.keys": tt.before}), "allowed.keys")
			if err := os.Chmod(file, 0o640); err != nil {
				t.Fatal(err)
			}
			changed, err := tt.edit(file)
			if err != nil || changed != (tt.after != tt.before) {
				t.Errorf("got changed %v, %v", changed, err)
			}
			got, err := os.ReadFile(file)
			if err != nil || string(got) != tt.after {
				t.Errorf("got %q\nwant %q (%v)", got, tt.after, err)
			}
			checkMode(t, file, 0o640)
			if entries, _ := os.ReadDir(filepath.Dir(file)); len(entries) != 1 {
				t.Errorf("left behind: %v", entries)
			}
		})
	}
}

func TestAllowFileIsMade(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state", "allowed.keys")
	if removed, err := RemoveAllowed(file, mustPublic(t, peerKey1)); removed || err != nil {
		t.Errorf("remove from no file: %v, %v", removed, err)
	}
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("denying a key made the file: %v", err)
	}
	if changed, err := AddAllowed(file, mustPublic(t, peerKey1), "laptop"); !changed || err != nil {
		t.Fatalf("got %v, %v", changed, err)
	}
	checkMode(t, file, 0o600)
	list, err := ParseAllowed(file)
	if err != nil || len(list) != 1 || list[0].String() != peerKey1+" laptop" {
		t.Errorf("got %v, %v", list, err)
	}
}

// A file that is not understood is not edited: a line that nobody can read may still be the one that admits the key.
func TestAllowFileWithFaultsIsLeftAlone(t *testing.T) {
	const text = peerKey1 + "\n" + peerKey2 + "laptop\n"
	file := filepath.Join(put(t, map[string]string{"allowed.keys": text}), "allowed.keys")
	_, addErr := AddAllowed(file, mustPublic(t, peerKey3), "")
	_, removeErr := RemoveAllowed(file, mustPublic(t, peerKey1))
	for _, err := range []error{addErr, removeErr} {
		if want := "nothing was changed: " + file + ":2: not a WireGuard key: want 32 bytes in base64 (44 characters)"; err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != text {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := AddAllowed(file, wgkey.Public{}, ""); err == nil {
		t.Error("the zero key is allowed")
	}
	if _, err := AddAllowed(file, mustPublic(t, peerKey3), "my laptop"); err == nil {
		t.Error("a name with a blank is accepted")
	}
}

// Edits by several processes at once are all there in the end.
func TestAllowFileIsEditedByOneAtATime(t *testing.T) {
	file := filepath.Join(put(t, map[string]string{"allowed.keys": "# here\n"}), "allowed.keys")
	var wg sync.WaitGroup
	const each, writers = 8, 4
	for range writers {
		keys := make([]wgkey.Public, each)
		for i := range keys {
			keys[i] = mustKey(t).Public()
		}
		wg.Go(func() {
			for _, k := range keys {
				if changed, err := AddAllowed(file, k, ""); !changed || err != nil {
					t.Errorf("got %v, %v", changed, err)
				}
			}
		})
	}
	wg.Wait()
	if list, err := ParseAllowed(file); err != nil || len(list) != each*writers {
		t.Errorf("got %d keys, %v", len(list), err)
	}
}

// What is read is what is written, and no text but a key's own admits that key.
func FuzzAllowed(f *testing.F) {
	f.Add([]byte("# friends\n" + peerKey1 + " laptop # mine\n\n" + peerKey2 + "\r\n"))
	f.Add([]byte(peerKey1))
	f.Add([]byte("\ufeff*\n" + keyText[:40] + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := parseAllowFile("f", text)
		if err != nil {
			if list != nil || err.Error() == "" {
				t.Errorf("got %v together with %v", list, err)
			}
			return
		}
		var again []byte
		for _, a := range list {
			if !strings.Contains(string(text), a.Key.String()) {
				t.Errorf("%s is admitted and stands nowhere", a.Key)
			}
			again = append(again, a.String()+"\n"...)
		}
		second, err := parseAllowFile("f", again)
		if err != nil || len(second) != len(list) {
			t.Fatalf("what was written reads as %v, %v", second, err)
		}
		for i := range list {
			if second[i].Key != list[i].Key || second[i].Name != list[i].Name {
				t.Errorf("got %v, want %v", second[i], list[i])
			}
		}
	})
}
