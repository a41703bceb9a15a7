//go:build !race

package packettest

const raceDetector = false
