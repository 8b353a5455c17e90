//go:build race

package punch

// usualSeeds is how many times each pair is simulated: few under the race detector, which has nothing to find here.
const usualSeeds = 10
