// What a click on the button of recorder.Recorder does: the first records, the second ends it and hands the recording to
// the kernel, through the widget's hidden text area, as a data URL of a WAV file: one channel of 16-bit samples.
// Whatever the browser records (webm, mp4), its own decoder reads. What goes wrong goes the same way, after a "!".
async (button, rate, longest) => {
  const area = button.closest(".context-diffusion-recorder").querySelector("textarea");
  const send = (text) => {
    area.value = text;
    area.dispatchEvent(new Event("change", { bubbles: true }));
  };
  const wav = (samples) => {
    const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
    const write = (place, text) => [...text].forEach((sign, i) => view.setUint8(place + i, sign.charCodeAt(0)));
    write(0, "RIFF"), view.setUint32(4, 36 + 2 * samples.length, true), write(8, "WAVEfmt ");
    view.setUint32(16, 16, true), view.setUint16(20, 1, true), view.setUint16(22, 1, true); // PCM, one channel
    view.setUint32(24, rate, true), view.setUint32(28, 2 * rate, true); // samples and bytes a second
    view.setUint16(32, 2, true), view.setUint16(34, 16, true); // bytes a sample, bits of it
    write(36, "data"), view.setUint32(40, 2 * samples.length, true);
    samples.forEach((x, i) => view.setInt16(44 + 2 * i, 32767 * Math.max(-1, Math.min(1, x)), true));
    return new Blob([view], { type: "audio/wav" });
  };
  if (button.recorder) return button.recorder.stop();
  try {
    if (!navigator.mediaDevices) throw new Error("the page comes neither from https nor from this computer");
    const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
    const recorder = (button.recorder = new MediaRecorder(stream)), parts = [], label = button.textContent;
    recorder.ondataavailable = (event) => parts.push(event.data);
    recorder.onstop = async () => {
      stream.getTracks().forEach((track) => track.stop());
      button.recorder = null;
      button.textContent = label;
      try {
        const decoder = new OfflineAudioContext(1, 1, rate); // decodes to its own rate
        const sound = await decoder.decodeAudioData(await new Blob(parts).arrayBuffer());
        const reader = new FileReader();
        reader.onload = () => send(reader.result);
        reader.readAsDataURL(wav(sound.getChannelData(0)));
      } catch (error) {
        send(`!the browser cannot decode what it recorded (${error.message})`);
      }
    };
    recorder.start();
    setTimeout(() => recorder.state === "recording" && recorder.stop(), 1000 * longest);
    button.textContent = "stop";
  } catch (error) {
    send(`!no microphone here (${error.message}); upload a file`);
  }
}
