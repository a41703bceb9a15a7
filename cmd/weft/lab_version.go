package main

import "runtime/debug"

// labVersion names this build for a result's fingerprint: its version and the commit it was built
// from, as in "v0.1.0 (abc1234)".
func labVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	version, commit, dirty := info.Main.Version, "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 7:
			commit = s.Value[:7]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = ", modified"
		}
	}
	if commit == "" {
		return version
	}
	return version + " (" + commit + dirty + ")"
}
