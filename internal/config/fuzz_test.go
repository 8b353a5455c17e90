package config

import (
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// No input makes the parser panic, and what a file says survives being written and read again.
func FuzzLoad(f *testing.F) {
	files, _ := filepath.Glob("testdata/*/*.conf")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		cfg, err := loadText(text)
		if err != nil {
			if err.Error() == "" {
				t.Error("an error without a message")
			}
			return
		}
		again, err := loadText([]byte(render(cfg)))
		if err != nil {
			t.Fatalf("rendered file does not load: %v\n%s", err, render(cfg))
		}
		forgetPositions(cfg)
		forgetPositions(again)
		if !reflect.DeepEqual(cfg, again) {
			t.Errorf("got %+v\nwant %+v", again, cfg)
		}
	})
}

// loadText loads a file from memory, in a world where variables contain themselves and no other file exists.
func loadText(text []byte) (*Config, error) {
	surroundings := Options{
		LookupEnv: func(name string) (string, bool) { return "$" + name, true },
		Hostname:  func() (string, error) { return "host", nil },
	}
	return load("fuzz.conf", surroundings, func(name string) (*content, error) {
		if name != "fuzz.conf" {
			return nil, fs.ErrNotExist
		}
		return &content{text, 0o600, false}, nil
	})
}

// The same for the configuration of a relay.
func FuzzLoadRelay(f *testing.F) {
	files, _ := filepath.Glob("testdata/relay-*/*.conf")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		cfg, err := loadRelayText(text)
		if err != nil {
			if err.Error() == "" {
				t.Error("an error without a message")
			}
			return
		}
		again, err := loadRelayText([]byte(renderRelay(cfg)))
		if err != nil {
			t.Fatalf("rendered file does not load: %v\n%s", err, renderRelay(cfg))
		}
		forgetRelayPositions(cfg)
		forgetRelayPositions(again)
		if !reflect.DeepEqual(cfg, again) {
			t.Errorf("got %+v\nwant %+v", again, cfg)
		}
	})
}

// loadRelayText is loadText for a relay.
func loadRelayText(text []byte) (*RelayConfig, error) {
	surroundings := Options{
		LookupEnv: func(name string) (string, bool) { return "$" + name, true },
		Hostname:  func() (string, error) { return "host", nil },
	}
	readFile := func(name string) (*content, error) {
		if name != "fuzz.conf" {
			return nil, fs.ErrNotExist
		}
		return &content{text, 0o600, false}, nil
	}
	return loadRelay("fuzz.conf", surroundings, readFile, func(string) ([]Allowed, error) { return nil, fs.ErrNotExist })
}

func forgetRelayPositions(c *RelayConfig) {
	c.Warnings = nil
	for i := range c.Server.Allow {
		c.Server.Allow[i].Line = 0
	}
	for i := range c.WGSTUN.Clients {
		c.WGSTUN.Clients[i].Line = 0
	}
}

func forgetPositions(c *Config) {
	c.Warnings = nil
	for i := range c.Peers {
		c.Peers[i].Line = 0
	}
	for i := range c.Relays {
		c.Relays[i].Line = 0
	}
	for i := range c.Proxies {
		c.Proxies[i].Line = 0
		for j := range c.Proxies[i].Routes {
			c.Proxies[i].Routes[j].Line = 0
		}
	}
	for i := range c.Forwards {
		c.Forwards[i].Line = 0
	}
	for i := range c.Publishes {
		c.Publishes[i].Line = 0
	}
	for i := range c.Filter.Rules {
		c.Filter.Rules[i].Line, c.Filter.Rules[i].Text = 0, ""
	}
	for i := range c.Filter.Sets {
		c.Filter.Sets[i].Line, c.Filter.Sets[i].Text = 0, ""
	}
}
