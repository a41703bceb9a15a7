//go:build race

package packettest

// raceDetector says whether the tests are built with it.
const raceDetector = true
