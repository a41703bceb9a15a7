package netlab

var PlainSettings = plainSettings // for the thread of a test
