//go:build !race

package punch

// usualSeeds is how many times each pair is simulated, unless -seeds says otherwise.
const usualSeeds = 25
