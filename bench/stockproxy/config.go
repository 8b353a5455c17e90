package main

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// config is a tunnel as the netstack and the device take it.
type config struct {
	addresses []netip.Addr
	mtu       int
	uapi      string
}

const defaultMTU = 1420

// parse reads a wg-quick file with the keys that the package comment names.
func parse(text string) (c config, err error) {
	c.mtu = defaultMTU
	var uapi strings.Builder
	number := 0
	for line := range strings.Lines(text) {
		number++
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		key, value, assigned := strings.Cut(line, "=")
		switch {
		case line == "" || strings.EqualFold(line, "[Interface]") || strings.EqualFold(line, "[Peer]"):
		case !assigned:
			err = fmt.Errorf("%q is neither a section nor a key", line)
		default:
			err = c.set(&uapi, strings.ToLower(strings.TrimSpace(key)), strings.TrimSpace(value))
		}
		if err != nil {
			return c, fmt.Errorf("line %d: %w", number, err)
		}
	}
	if len(c.addresses) == 0 {
		return c, fmt.Errorf("no Address")
	}
	c.uapi = uapi.String()
	return c, nil
}

// set takes one key. The order of the file is that of the UAPI: a peer's public key comes first.
func (c *config) set(uapi *strings.Builder, key, value string) (err error) {
	switch key {
	case "privatekey", "publickey":
		k, err := base64.StdEncoding.DecodeString(value)
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		name := map[string]string{"privatekey": "private_key", "publickey": "public_key"}[key]
		fmt.Fprintf(uapi, "%s=%s\n", name, hex.EncodeToString(k))
	case "address":
		for a := range strings.SplitSeq(value, ",") {
			p, err := netip.ParsePrefix(strings.TrimSpace(a))
			if err != nil {
				return err
			}
			c.addresses = append(c.addresses, p.Addr())
		}
	case "mtu":
		c.mtu, err = strconv.Atoi(value)
	case "allowedips":
		for a := range strings.SplitSeq(value, ",") {
			fmt.Fprintf(uapi, "allowed_ip=%s\n", strings.TrimSpace(a))
		}
	case "endpoint":
		fmt.Fprintf(uapi, "endpoint=%s\n", value)
	case "persistentkeepalive":
		fmt.Fprintf(uapi, "persistent_keepalive_interval=%s\n", value)
	default:
		return fmt.Errorf("%s is not a key that this program knows", key)
	}
	return err
}
