package dns

import (
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	maxCachedLen   = 4096             // bytes of an answer
	maxTTL         = time.Hour        // a record may live longer, but not here
	maxNegativeTTL = 10 * time.Minute // RFC 2308 section 5 asks for a limit
	evictionSample = 8
)

// cache keeps answers for as long as their records live, absent names and types included (RFC 2308). A nil cache keeps
// nothing. It holds what upstreams said, before any filtering for a client.
type cache struct {
	max int

	mu      sync.Mutex // guards the following
	entries map[cacheKey]cacheEntry
	epoch   int // grows with each flush
}

// cacheKey is all of a query that an answer can depend on.
type cacheKey struct {
	question string // wire form, name in lower case
	flags    uint16 // RD, AD, CD
	edns     bool
	dnssec   bool
}

type cacheEntry struct {
	answer          []byte // immutable
	stored, expires time.Time
}

func newCache(entries int) *cache {
	if entries < 0 {
		return nil
	}
	return &cache{max: entries, entries: make(map[cacheKey]cacheEntry)}
}

// keyOf returns ok false for queries with EDNS options or signatures, whose answers are for one asker only.
func keyOf(query *message) (k cacheKey, ok bool) {
	if query.hasOPTData() || query.hasOPT() != (query.count(sectionAdditional) == 1) || query.count(sectionAdditional) > 1 {
		return k, false
	}
	question := slices.Clone(query.question())
	for i := range question[:len(question)-4] {
		question[i] = lower(question[i])
	}
	return cacheKey{
		question: string(question),
		flags:    query.flags() & (flagRD | flagAD | flagCD),
		edns:     query.hasOPT(),
		dnssec:   query.dnssecOK(),
	}, true
}

// get returns a copy of a live answer with its records aged, made out to query.
func (c *cache) get(query *message, now time.Time) (m message, ok bool) {
	key, ok := keyOf(query)
	if c == nil || !ok {
		return m, false
	}
	c.mu.Lock()
	e, ok := c.entries[key]
	c.mu.Unlock()
	if !ok || !now.Before(e.expires) {
		return m, false
	}
	if m, ok = parse(slices.Clone(e.answer)); !ok {
		return m, false
	}
	age := uint32(max(0, now.Sub(e.stored)) / time.Second)
	for _, r := range m.records {
		if r.typ != typeOPT { // whose TTL field holds flags
			m.setTTL(r, m.ttl(r)-min(age, m.ttl(r)))
		}
	}
	m.adopt(query)
	return m, true
}

// put keeps the answer if it may be kept and nothing was flushed since the query was sent, in the given epoch.
func (c *cache) put(query, answer *message, epoch int, now time.Time) {
	key, ok := keyOf(query)
	if c == nil || !ok || len(answer.raw) > maxCachedLen {
		return
	}
	ttl := lifetime(answer)
	if ttl <= 0 {
		return
	}
	e := cacheEntry{answer: slices.Clone(answer.raw), stored: now, expires: now.Add(ttl)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if epoch != c.epoch {
		return
	}
	if _, replaced := c.entries[key]; !replaced && len(c.entries) >= c.max {
		c.evictLocked(now)
	}
	c.entries[key] = e
}

// evictLocked makes room: of a few entries the expired, else the one that expires first.
func (c *cache) evictLocked(now time.Time) {
	var oldest cacheKey
	var expires time.Time
	seen := 0
	for k, e := range c.entries { // Go starts at a random entry
		if !now.Before(e.expires) {
			delete(c.entries, k)
		} else if expires.IsZero() || e.expires.Before(expires) {
			oldest, expires = k, e.expires
		}
		if seen++; seen == evictionSample {
			break
		}
	}
	if len(c.entries) >= c.max {
		delete(c.entries, oldest)
	}
}

// flush forgets everything.
func (c *cache) flush() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.entries)
	c.epoch++
}

// currentEpoch is for put.
func (c *cache) currentEpoch() int {
	if c == nil {
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.epoch
}

// lifetime returns how long an answer may be kept, zero for not at all.
func lifetime(m *message) time.Duration {
	if m.has(flagTC) || m.extendedRCode() != 0 || !m.hasQuestion() {
		return 0
	}
	if rcode := m.rcode(); rcode != dnsmessage.RCodeSuccess && rcode != dnsmessage.RCodeNameError {
		return 0
	}
	least, negative := maxTTL, true
	var soa *record
	for i, r := range m.records {
		if r.typ == typeOPT {
			continue
		}
		least = min(least, seconds(m.ttl(r)))
		if r.section == sectionAnswer && (r.typ == m.qtype() || m.qtype() == typeANY) {
			negative = false
		}
		if r.section == sectionAuthority && r.typ == uint16(dnsmessage.TypeSOA) {
			soa = &m.records[i]
		}
	}
	if !negative && m.rcode() == dnsmessage.RCodeSuccess {
		return least
	}
	if soa == nil || len(m.rdata(*soa)) < 22 { // RFC 2308 section 5: without SOA it must not be kept
		return 0
	}
	rdata := m.rdata(*soa)
	minimum := seconds(binary.BigEndian.Uint32(rdata[len(rdata)-4:]))
	return min(least, minimum, maxNegativeTTL)
}

// seconds converts a TTL; with the top bit set it counts as zero (RFC 2181 section 8).
func seconds(ttl uint32) time.Duration {
	if ttl > 1<<31-1 {
		return 0
	}
	return time.Duration(ttl) * time.Second
}
