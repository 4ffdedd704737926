# `call.rb URL` prints the answer's body.
require "net/http"
puts Net::HTTP.get(URI(ARGV[0]))
