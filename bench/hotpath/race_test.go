//go:build race

package hotpath

// The race detector makes sync.Pool forget on purpose, so that allocations cannot be counted.
const raceEnabled = true
