// `events.mjs ORIGIN NAME` prints the data of three server-sent events; lets the server go on after each.
const [origin, name] = process.argv.slice(2);
const answer = await fetch(`${origin}/events/${name}`, { headers: { Accept: "text/event-stream" } });
let text = "";
for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) {
  text += piece;
  for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
    const data = text.slice(0, end).replace(/^data: /, "");
    console.log(data);
    await fetch(`${origin}/gate/${name}${data}`);
  }
}
