package config

import (
	"math"
	"strconv"
	"strings"
)

// Rate is a limit in bits of IP packets per second; zero is none.
type Rate int64

const (
	minRate = 8_000           // below that not even a handshake of TLS completes
	maxRate = 100_000_000_000 // no tunnel carries more
)

// rateUnits are the units that rates are written in, the largest first. They are decimal, as those of links are.
var rateUnits = []struct {
	name   string
	letter string
	bits   float64
}{{"Gbit", "g", 1e9}, {"Mbit", "m", 1e6}, {"kbit", "k", 1e3}, {"bit", "", 1}}

// ParseRate reads a rate such as 50Mbit. Users of tc may write 50mbit, 50M or 50Mbit/s too. What tc calls bps are bytes, which
// hardly anybody expects, so that bps is refused; so is a number without a unit.
func ParseRate(s string) (Rate, error) {
	end := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if end < 0 {
		return 0, reject(s, "is not a rate: it needs a unit, as in 50Mbit")
	}
	unit := strings.ToLower(strings.TrimLeft(s[end:], " \t"))
	if strings.HasSuffix(unit, "bps") {
		return 0, reject(s, "is not a rate: bps could be bits or bytes; write 50Mbit for 50 million bits per second")
	}
	for _, u := range rateUnits {
		if bit := strings.ToLower(u.name); unit != bit && unit != bit+"/s" && (u.letter == "" || unit != u.letter) {
			continue
		}
		n, err := strconv.ParseFloat(s[:end], 64)
		if err != nil || strings.HasPrefix(s, ".") || strings.HasSuffix(s[:end], ".") {
			break
		}
		if n *= u.bits; n < minRate || n > maxRate {
			return 0, reject(s, "is not a rate that can be kept: want %s to %s, or no Rate for no limit", Rate(minRate), Rate(maxRate))
		}
		return Rate(math.Round(n)), nil
	}
	return 0, reject(s, "is not a rate such as 500kbit, 50Mbit or 1Gbit")
}

// String writes the rate in the largest unit that needs no fraction, as ParseRate reads it.
func (r Rate) String() string {
	for _, u := range rateUnits {
		if size := int64(u.bits); int64(r)%size == 0 {
			return strconv.FormatInt(int64(r)/size, 10) + u.name
		}
	}
	return ""
}
